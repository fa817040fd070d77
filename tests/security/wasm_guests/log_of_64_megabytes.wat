;; expect: succeeded limits=cpu_ms=2000
;; result: null
(module
  (import "engine" "log" (func $log (param i32 i32 i32)))
  (memory (export "memory") 1024)
  (data (i32.const 0) "null")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (call $log (i32.const 1) (i32.const 0) (i32.const 67108864))
    (i64.const 4))
)
