;; expect: cpu_exceeded cpu_ms limits=cpu_ms=50
;; What it uses, it uses in the host: it is stopped there, or at the next loop, never later.
(module
  (import "engine" "call" (func $call (param i32 i32) (result i64)))
  (import "wasi_snapshot_preview1" "random_get" (func $random_get (param i32 i32) (result i32)))
  (memory (export "memory") 128)
  (data (i32.const 2048) "{\"operation\":\"devices.values\",\"arguments\":{\"device\":\"nobody\",\"key\":\"x\"}}")
  (data (i32.const 0) "null")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (loop $again
      (drop (call $random_get (i32.const 0) (i32.const 0x800000)))
      (drop (call $call (i32.const 2048) (i32.const 72)))
      (br $again))
    (unreachable))
)
