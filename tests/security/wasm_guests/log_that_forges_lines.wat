;; expect: succeeded
;; result: null
(module
  (import "engine" "log" (func $log (param i32 i32 i32)))
  (memory (export "memory") 1)
  (data (i32.const 100) "done\0a\1b[2J\00{\"level\":\"error\",\"execution_id\":\"exe_1\"}")
  (data (i32.const 0) "null")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (call $log (i32.const 1) (i32.const 100) (i32.const 48))
    (i64.const 4))
)
