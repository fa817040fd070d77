;; expect: succeeded
;; result: null
;; AssemblyScript's modules do such things before anybody can call an export.
(module
  (import "engine" "log" (func $log (param i32 i32 i32)))
  (import "wasi_snapshot_preview1" "random_get" (func $random_get (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "null")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64) (i64.const 4))
  (func $says
    (drop (call $random_get (i32.const 100) (i32.const 8)))
    (call $log (i32.const 1) (i32.const 0) (i32.const 4)))
  (start $says)
)
