;; expect: failed
;; error: Trap divide by zero
(module
  (memory (export "memory") 1)
  (data (i32.const 0) "null")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (i64.div_s (i64.const 4) (i64.extend_i32_u (i32.const 0))))
)
