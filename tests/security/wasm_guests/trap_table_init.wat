;; expect: failed
;; error: Trap table
(module
  (memory (export "memory") 1)
  (data (i32.const 0) "null")
  (table $t 1 funcref)
  (elem $e funcref (ref.null func))
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (table.init $t $e (i32.const 0) (i32.const 0) (i32.const 9))
    (i64.const 4))
)
