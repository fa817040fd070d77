;; expect: memory_exceeded memory_mb limits=memory_mb=8
(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (drop (memory.grow (i32.const 127)))
    (call $proc_exit (i32.const 1)))
)
