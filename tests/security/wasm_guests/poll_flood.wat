;; expect: host_calls_exceeded host_calls limits=cpu_ms=2000
;; Each sleeps for a nanosecond.
(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 108) "\00\00\00\00\00\00\00\00\01\00\00\00\00\00\00\00\01")
  (data (i32.const 0) "null")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (loop $again (drop (call $poll_oneoff (i32.const 100) (i32.const 300) (i32.const 1) (i32.const 400))) (br $again))
    (unreachable))
)
