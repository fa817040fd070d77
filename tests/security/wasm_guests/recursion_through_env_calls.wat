;; expect: failed
;; error: ImportError engine.call
;; alloc calls the host, which calls alloc, and so on.
(module
  (import "engine" "call" (func $call (param i32 i32) (result i64)))
  (memory (export "memory") 1)
  (data (i32.const 2048) "{\"operation\":\"env\",\"arguments\":{}}")
  (data (i32.const 0) "null")
  (global $calls (mut i32) (i32.const 0))
  (func (export "alloc") (param i32) (result i32)
    (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
    (if (i32.gt_u (global.get $calls) (i32.const 1)) (then (drop (call $call (i32.const 2048) (i32.const 34)))))
    (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (call $call (i32.const 2048) (i32.const 34)))
)
