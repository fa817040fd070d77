;; expect: effects_exceeded effect_bytes limits=cpu_ms=2000
(module
  (import "engine" "call" (func $call (param i32 i32) (result i64)))
  (memory (export "memory") 4)
  (data (i32.const 100) "{\"operation\":\"devices.write\",\"arguments\":{\"device\":\"nobody\",\"values\":[{\"key\":\"x\",\"value\":\"")
  (data (i32.const 200) "\"}]}}")
  (data (i32.const 0) "null")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (memory.fill (i32.const 2048) (i32.const 0x79) (i32.const 0x30000))
    (memory.copy (i32.const 2048) (i32.const 100) (i32.const 90))
    (memory.copy (i32.const 0x30800) (i32.const 200) (i32.const 5))
    (loop $again
      (drop (call $call (i32.const 2048) (i32.const 0x30005)))
      (br $again))
    (unreachable))
)
