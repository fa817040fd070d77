;; expect: failed
;; error: Trap out of bounds memory access
(module
  (memory (export "memory") 1)
  (data (i32.const 0) "null")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (i32.store8 (i32.const 65536) (i32.const 1))
    (i64.const 4))
)
