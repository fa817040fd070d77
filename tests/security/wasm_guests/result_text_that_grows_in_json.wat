;; expect: output_exceeded output_bytes io=text
;; Half a mebibyte of \u0001 is three as JSON.
(module
  (memory (export "memory") 17)
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (memory.fill (i32.const 0) (i32.const 1) (i32.const 0x80000))
    (i64.const 0x00000000_00080000))
)
