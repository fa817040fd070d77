;; expect: memory_exceeded memory_mb limits=memory_mb=8
(module
  (memory (export "memory") 1)
  (data (i32.const 0) "null")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (if (i32.eq (memory.grow (i32.const 127)) (i32.const -1)) (then (return (i64.const 4))))
    (drop (memory.grow (i32.const 1)))
    (unreachable))
)
