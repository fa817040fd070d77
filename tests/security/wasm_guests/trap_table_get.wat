;; expect: failed
;; error: Trap table
(module
  (memory (export "memory") 1)
  (data (i32.const 0) "null")
  (table $t 1 funcref)
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (drop (table.get $t (i32.const 1)))
    (i64.const 4))
)
