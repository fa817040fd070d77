;; expect: cpu_exceeded fuel limits=fuel=10000
(module
  (memory (export "memory") 1)
  (data (i32.const 0) "null")
  (func $down (param i32) (result i32) (i32.add (i32.const 1) (call $down (i32.sub (local.get 0) (i32.const 1)))))
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (drop (call $down (i32.const 1000000)))
    (unreachable))
)
