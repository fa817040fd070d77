;; expect: succeeded
;; result: ok false
(module
  (import "engine" "call" (func $call (param i32 i32) (result i64)))
  (memory (export "memory") 4)
  (data (i32.const 100) "{\"operation\":\"x\",\"arguments\":")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (memory.fill (i32.const 2048) (i32.const 0x5b) (i32.const 100029))
    (memory.fill (i32.const 102077) (i32.const 0x5d) (i32.const 100000))
    (memory.copy (i32.const 2048) (i32.const 100) (i32.const 29))
    (i32.store8 (i32.const 202077) (i32.const 0x7d))
    (call $call (i32.const 2048) (i32.const 200030)))
)
