;; expect: cpu_exceeded cpu_ms limits=cpu_ms=50
;; Each step between two host calls is short; their sum is not.
(module
  (import "engine" "call" (func $call (param i32 i32) (result i64)))
  (memory (export "memory") 1)
  (data (i32.const 2048) "{\"operation\":\"devices.values\",\"arguments\":{\"device\":\"nobody\",\"key\":\"x\"}}")
  (data (i32.const 0) "null")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (local $n i32)
    (loop $again
      (local.set $n (i32.const 3000000))
      (loop $spin (br_if $spin (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
      (drop (call $call (i32.const 2048) (i32.const 72)))
      (br $again))
    (unreachable))
)
