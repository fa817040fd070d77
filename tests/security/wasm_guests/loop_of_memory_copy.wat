;; expect: cpu_exceeded cpu_ms limits=cpu_ms=50
(module
  (memory (export "memory") 128)
  (data (i32.const 0) "null")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (loop $again
      (memory.copy (i32.const 0) (i32.const 1) (i32.const 0x7fffff))
      (br $again))
    (unreachable))
)
