;; expect: output_exceeded output_bytes
(module
  (memory (export "memory") 32)
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (memory.fill (i32.const 0) (i32.const 0x20) (i32.const 0x200000))
    (i32.store8 (i32.const 0) (i32.const 0x30))
    (i64.const 0x00000000_00200000))
)
