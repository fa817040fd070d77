;; expect: cpu_exceeded fuel limits=fuel=10000
(module
  (memory (export "memory") 1)
  (data (i32.const 0) "null")
  (func (export "alloc") (param i32) (result i32) (loop $again (br $again)) (unreachable))
  (func (export "handle") (param i32 i32) (result i64)
    (i64.const 4))
)
