;; expect: failed
;; error: Trap unreachable
(module
  (memory (export "memory") 1)
  (data (i32.const 0) "null")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (unreachable))
)
