;; expect: succeeded
;; result: {"ok": true, "value": {}}
(module
  (import "engine" "call" (func $call (param i32 i32) (result i64)))
  (memory (export "memory") 1)
  (data $request "{\"operation\":\"env\",\"arguments\":{}}")
  (func (export "alloc") (param i32) (result i32) (i32.const 2048))
  (func (export "handle") (param i32 i32) (result i64)
    (memory.init $request (i32.const 2048) (i32.const 0) (i32.const 34))
    (call $call (i32.const 2048) (i32.const 34)))
)
