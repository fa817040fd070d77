;; expect: failed
;; error: ResultError nested
(module
  (memory (export "memory") 4)
  (data (i32.const 0) "null")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (memory.fill (i32.const 1024) (i32.const 0x5b) (i32.const 100000))
    (memory.fill (i32.const 101024) (i32.const 0x5d) (i32.const 100000))
    (i64.const 0x00000400_00030d40))
)
