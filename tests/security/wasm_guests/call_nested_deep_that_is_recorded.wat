;; expect: succeeded
;; result: ok false
;; Whoever reads the transcript later has to parse it.
(module
  (import "engine" "call" (func $call (param i32 i32) (result i64)))
  (memory (export "memory") 1)
  (data (i32.const 100) "{\"operation\":\"devices.values\",\"arguments\":")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (memory.fill (i32.const 2048) (i32.const 0x5b) (i32.const 20000))
    (memory.fill (i32.const 22048) (i32.const 0x5d) (i32.const 19958))
    (memory.copy (i32.const 2048) (i32.const 100) (i32.const 42))
    (i32.store8 (i32.const 42006) (i32.const 0x7d))
    (call $call (i32.const 2048) (i32.const 39959)))
)
