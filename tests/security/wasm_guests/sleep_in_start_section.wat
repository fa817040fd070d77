;; expect: succeeded
;; result: null
;; An hour; but there is nobody to ask yet, so it is an errno.
(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "null")
  (data (i32.const 108) "\00\00\00\00\00\00\00\00\01\00\00\00\00\00\00\00\00\a0\b8\30\46\03\00\00")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64) (i64.const 4))
  (func $sleeps
    (drop (call $poll_oneoff (i32.const 100) (i32.const 300) (i32.const 1) (i32.const 400))))
  (start $sleeps)
)
