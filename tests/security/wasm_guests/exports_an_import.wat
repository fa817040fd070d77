;; expect: succeeded
;; result: null
(module
  (import "engine" "log" (func $log (param i32 i32 i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "null")
  (export "log" (func $log))
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (i64.const 4))
)
