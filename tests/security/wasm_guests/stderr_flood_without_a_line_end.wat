;; expect: succeeded limits=cpu_ms=2000
;; result: null
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 100) "\00\04\00\00\00\80\00\00")
  (func (export "_start")
    (local $n i32)
    (memory.fill (i32.const 1024) (i32.const 0x61) (i32.const 0x8000))
    (local.set $n (i32.const 1000))
    (loop $again
      (drop (call $fd_write (i32.const 2) (i32.const 100) (i32.const 1) (i32.const 200)))
      (br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1))))))
)
