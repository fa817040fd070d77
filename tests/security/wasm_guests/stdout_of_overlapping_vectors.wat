;; expect: output_exceeded output_bytes limits=cpu_ms=2000
;; 1024 vectors that all name the same 64 MB: 64 GB from one call.
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1024)
  (func (export "_start")
    (local $n i32)
    (loop $vector
      (i32.store (i32.add (i32.const 1024) (i32.shl (local.get $n) (i32.const 3)))
        (i32.const 0x10000))
      (i32.store (i32.add (i32.const 1028) (i32.shl (local.get $n) (i32.const 3)))
        (i32.const 0x3ff0000))
      (br_if $vector
        (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 1024))))
    (loop $again
      (drop (call $fd_write (i32.const 1) (i32.const 1024) (i32.const 1024) (i32.const 200)))
      (br $again)))
)
