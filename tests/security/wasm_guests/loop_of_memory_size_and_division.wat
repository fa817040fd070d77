;; expect: cpu_exceeded cpu_ms limits=cpu_ms=50
(module
  (memory (export "memory") 1)
  (data (i32.const 0) "null")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (loop $again
      (local.set 0 (i32.div_u (i32.const -1) (memory.size)))
      (br_if $again (local.get 0)))
    (unreachable))
)
