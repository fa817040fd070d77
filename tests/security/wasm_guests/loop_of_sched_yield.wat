;; expect: cpu_exceeded cpu_ms limits=cpu_ms=50
(module
  (import "wasi_snapshot_preview1" "sched_yield" (func $sched_yield (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "null")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (loop $again (drop (call $sched_yield)) (br $again))
    (unreachable))
)
