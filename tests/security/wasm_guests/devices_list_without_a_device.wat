;; expect: succeeded
;; result: ok false
(module
  (import "engine" "call" (func $call (param i32 i32) (result i64)))
  (memory (export "memory") 1)
  (data (i32.const 2048) "{\"operation\":\"devices.list\",\"arguments\":{}}")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (call $call (i32.const 2048) (i32.const 43)))
)
