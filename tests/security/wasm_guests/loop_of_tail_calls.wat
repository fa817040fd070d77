;; expect: cpu_exceeded cpu_ms limits=cpu_ms=50
(module
  (memory (export "memory") 1)
  (data (i32.const 0) "null")
  (func $left (result i64) (return_call $right))
  (func $right (result i64) (return_call $left))
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (return_call $left))
)
