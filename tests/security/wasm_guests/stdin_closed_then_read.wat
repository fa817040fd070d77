;; expect: failed
;; error: ExitError exit status 8
(module
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_close" (func $fd_close (param i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (drop (call $fd_close (i32.const 0)))
    (call $proc_exit (call $fd_read (i32.const 0) (i32.const 100) (i32.const 1) (i32.const 200))))
)
