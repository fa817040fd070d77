;; expect: failed
;; error: ImportError engine.call
;; alloc calls the host, which calls alloc, and so on.
(module
  (import "engine" "call" (func $call (param i32 i32) (result i64)))
  (memory (export "memory") 1)
  (data (i32.const 2048) "{\"operation\":\"devices.values\",\"arguments\":{\"device\":\"nobody\",\"key\":\"x\"}}")
  (data (i32.const 0) "null")
  (func (export "alloc") (param i32) (result i32)
    (drop (call $call (i32.const 2048) (i32.const 72)))
    (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (call $call (i32.const 2048) (i32.const 72)))
)
