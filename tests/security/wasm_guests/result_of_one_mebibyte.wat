;; expect: succeeded limits=cpu_ms=2000
(module
  (memory (export "memory") 17)
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (memory.fill (i32.const 0) (i32.const 0x61) (i32.const 0x100000))
    (i32.store8 (i32.const 0) (i32.const 0x22))
    (i32.store8 (i32.const 0xfffff) (i32.const 0x22))
    (i64.const 0x00000000_00100000))
)
