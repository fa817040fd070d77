;; expect: succeeded
;; result: null
(module
  (memory (export "memory") 1)
  (data $d "null")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (memory.init $d (i32.const 100) (i32.const 0) (i32.const 4))
    (memory.copy (i32.const 0) (i32.const 100) (i32.const 4))
    (i64.const 4))
)
