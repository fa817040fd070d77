;; expect: memory_exceeded stack_bytes
(module
  (memory (export "memory") 1)
  (data (i32.const 0) "null")
  (func $alloc (export "alloc") (param i32) (result i32)
    (i32.add (i32.const 1) (call $alloc (local.get 0))))
  (func (export "handle") (param i32 i32) (result i64)
    (i64.const 4))
)
