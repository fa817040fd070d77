;; expect: succeeded limits=cpu_ms=2000
;; result: ok false
(module
  (import "engine" "call" (func $call (param i32 i32) (result i64)))
  (memory (export "memory") 800)
  (data (i32.const 100) "{\"operation\":\"devices.values\",\"arguments\":\"")
  (data (i32.const 200) "\"}")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (memory.fill (i32.const 2048) (i32.const 0x61) (i32.const 50331648))
    (memory.copy (i32.const 2048) (i32.const 100) (i32.const 43))
    (memory.copy (i32.const 50333696) (i32.const 200) (i32.const 2))
    (call $call (i32.const 2048) (i32.const 50331650)))
)
