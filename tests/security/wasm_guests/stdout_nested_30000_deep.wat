;; expect: succeeded limits=cpu_ms=500
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 100) "\00\04\00\00\60\ea\00\00")
  (func (export "_start")
    (memory.fill (i32.const 1024) (i32.const 0x5b) (i32.const 30000))
    (memory.fill (i32.const 31024) (i32.const 0x5d) (i32.const 30000))
    (drop (call $fd_write (i32.const 1) (i32.const 100) (i32.const 1) (i32.const 200))))
)
