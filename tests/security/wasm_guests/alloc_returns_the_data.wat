;; expect: succeeded
;; result: "null"
(module
  (memory (export "memory") 1)
  (data (i32.const 100) "\"xxxx\"")
  (func (export "alloc") (param i32) (result i32) (i32.const 101))
  (func (export "handle") (param i32 i32) (result i64)
    (i64.const 0x00000064_00000006))
)
