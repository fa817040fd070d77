;; expect: failed
;; error: Trap empty table element
(module
  (memory (export "memory") 1)
  (data (i32.const 0) "null")
  (table 1 funcref)
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (call_indirect (result i64) (i32.const 0)))
)
