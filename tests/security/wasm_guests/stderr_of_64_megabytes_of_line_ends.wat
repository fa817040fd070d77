;; expect: succeeded limits=cpu_ms=2000
;; result: null
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1024)
  (data (i32.const 100) "\00\00\01\00\00\00\ff\03")
  (func (export "_start")
    (memory.fill (i32.const 0x10000) (i32.const 10) (i32.const 0x3ff0000))
    (drop (call $fd_write (i32.const 2) (i32.const 100) (i32.const 1) (i32.const 200))))
)
