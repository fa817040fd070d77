;; expect: succeeded
;; result: "\ufffd"
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 100) "\00\04\00\00\08\00\00\00")
  (data (i32.const 1024) "\22\5cud800\22")
  (func (export "_start")
    (drop (call $fd_write (i32.const 1) (i32.const 100) (i32.const 1) (i32.const 200))))
)
