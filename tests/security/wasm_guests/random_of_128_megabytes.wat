;; expect: cpu_exceeded cpu_ms limits=cpu_ms=50,memory_mb=128
(module
  (import "wasi_snapshot_preview1" "random_get" (func $random_get (param i32 i32) (result i32)))
  (memory (export "memory") 2048)
  (data (i32.const 0) "null")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (loop $again (drop (call $random_get (i32.const 0) (i32.const 0x8000000))) (br $again))
    (unreachable))
)
