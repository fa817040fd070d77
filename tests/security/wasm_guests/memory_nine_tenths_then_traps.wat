;; expect: memory_exceeded memory_mb limits=memory_mb=8
;; 116 of 128 pages are 90.6 %.
(module
  (memory (export "memory") 1)
  (data (i32.const 0) "null")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (drop (memory.grow (i32.const 115)))
    (unreachable))
)
