;; expect: failed limits=memory_mb=8
;; error: Trap out of bounds memory access
(module
  (memory (export "memory") 1)
  (data (i32.const 0) "null")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (drop (memory.grow (i32.const 1000)))
    (i32.store (i32.const 0x2000000) (i32.const 1))
    (i64.const 4))
)
