;; expect: failed
;; error: Trap out of bounds memory access
(module
  (memory (export "memory") 1)
  (data (i32.const 0) "null")
  (data $d "x")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (data.drop $d)
    (memory.init $d (i32.const 0) (i32.const 0) (i32.const 1))
    (i64.const 4))
)
