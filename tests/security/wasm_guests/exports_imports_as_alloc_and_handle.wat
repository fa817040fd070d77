;; expect: succeeded
;; result: ok false
;; The answer of proc_raise, 52, is an address as good as any.
(module
  (import "engine" "call" (func $call (param i32 i32) (result i64)))
  (import "wasi_snapshot_preview1" "proc_raise" (func $proc_raise (param i32) (result i32)))
  (memory (export "memory") 1)
  (export "alloc" (func $proc_raise))
  (export "handle" (func $call))
)
