;; expect: failed
;; error: ResultError
(module
  (memory (export "memory") 1)
  (data (i32.const 100) "\22a\0ab\22")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (i64.const 0x00000064_00000005))
)
