;; expect: cpu_exceeded cpu_ms limits=cpu_ms=50
(module
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 100) "\00\04\00\00\00\80\00\00")
  (func (export "_start")
    (loop $again
      (drop (call $fd_read (i32.const 0) (i32.const 100) (i32.const 1) (i32.const 200)))
      (br $again)))
)
