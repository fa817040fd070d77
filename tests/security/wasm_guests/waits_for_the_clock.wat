;; expect: cpu_exceeded cpu_ms limits=cpu_ms=50
;; Time stands still between host calls: a busy wait never sees it pass.
(module
  (import "wasi_snapshot_preview1" "clock_time_get" (func $clock_time_get (param i32 i64 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "null")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (drop (call $clock_time_get (i32.const 0) (i64.const 0) (i32.const 64)))
    (loop $again
      (drop (call $clock_time_get (i32.const 1) (i64.const 0) (i32.const 72)))
      (br_if $again (i64.le_u (i64.load (i32.const 72)) (i64.load (i32.const 64)))))
    (i64.const 4))
)
