;; expect: succeeded limits=memory_mb=8
;; result: null
(module
  (memory (export "memory") 1 65536)
  (data (i32.const 0) "null")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (i64.const 4))
)
