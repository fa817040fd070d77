;; expect: succeeded
;; result: {"ok": true, "value": {}}
;; alloc moves the memory while the host is about to write there.
(module
  (import "engine" "call" (func $call (param i32 i32) (result i64)))
  (memory (export "memory") 1)
  (data (i32.const 2048) "{\"operation\":\"env\",\"arguments\":{}}")
  (func (export "alloc") (param i32) (result i32)
    (local $page i32)
    (local.set $page (memory.grow (i32.const 40)))
    (i32.mul (local.get $page) (i32.const 65536)))
  (func (export "handle") (param i32 i32) (result i64)
    (local $answer i64)
    (local.set $answer (call $call (i32.const 2048) (i32.const 34)))
    (drop (memory.grow (i32.const 100)))
    (local.get $answer))
)
