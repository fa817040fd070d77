;; expect: host_calls_exceeded host_calls limits=cpu_ms=2000
(module
  (import "engine" "call" (func $call (param i32 i32) (result i64)))
  (memory (export "memory") 1)
  (data (i32.const 2048) "{\"operation\":\"no.such.operation\",\"arguments\":{}}")
  (data (i32.const 0) "null")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (loop $again (drop (call $call (i32.const 2048) (i32.const 48))) (br $again))
    (unreachable))
)
