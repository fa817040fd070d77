;; expect: memory_exceeded stack_bytes
(module
  (memory (export "memory") 1)
  (data (i32.const 0) "null")
  (type $down (func (param i32) (result i32)))
  (table 1 funcref)
  (elem (i32.const 0) $down)
  (func $down (type $down)
    (i32.add (i32.const 1) (call_indirect (type $down) (local.get 0) (i32.const 0))))
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (drop (call $down (i32.const 0)))
    (unreachable))
)
