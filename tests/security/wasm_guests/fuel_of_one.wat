;; expect: cpu_exceeded fuel limits=fuel=1
(module
  (memory (export "memory") 1)
  (func (export "alloc") (param i32) (result i32) (nop) (loop (nop)) (call $nothing) (i32.const 1024))
  (func $nothing)
  (func (export "handle") (param i32 i32) (result i64)
    (i64.const 4))
)
