;; expect: failed limits=memory_mb=8
;; error: Trap 4.0 of 8 MB
(module
  (memory (export "memory") 1)
  (data (i32.const 0) "null")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (drop (memory.grow (i32.const 63)))
    (unreachable))
)
