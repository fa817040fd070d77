;; expect: failed
;; error: Trap out of bounds memory access
(module
  (memory (export "memory") 1)
  (data (i32.const 0) "null")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (memory.fill (i32.const 65535) (i32.const 0) (i32.const 2))
    (i64.const 4))
)
