;; expect: memory_exceeded stack_bytes
(module
  (memory (export "memory") 1)
  (data (i32.const 0) "null")
  (func $down (param i32) (result i32) (i32.add (i32.const 1) (call $down (local.get 0))))
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (drop (call $down (i32.const 0)))
    (unreachable))
)
