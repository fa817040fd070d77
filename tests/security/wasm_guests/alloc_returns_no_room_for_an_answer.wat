;; expect: failed
;; error: ImportError
(module
  (import "engine" "call" (func $call (param i32 i32) (result i64)))
  (memory (export "memory") 1)
  (data (i32.const 2048) "{\"operation\":\"env\",\"arguments\":{}}")
  (global $address (mut i32) (i32.const 1024))
  (func (export "alloc") (param i32) (result i32)
    (global.get $address)
    (global.set $address (i32.const 65530)))
  (func (export "handle") (param i32 i32) (result i64)
    (call $call (i32.const 2048) (i32.const 34)))
)
