;; expect: refused engine.call
(module
  (import "engine" "call" (func $call (param i32 i32) (result i64)))
  (memory (export "memory") 1)
  (data (i32.const 2048) "{\"operation\":\"env\",\"arguments\":{}}")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64) (i64.const 0))
  (func $asks (drop (call $call (i32.const 2048) (i32.const 34))))
  (start $asks)
)
