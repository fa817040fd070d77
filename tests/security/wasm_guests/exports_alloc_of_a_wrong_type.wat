;; expect: refused alloc
(module
  (memory (export "memory") 1)
      (func (export "alloc") (param i64) (result i64) (i64.const 0))
      (func (export "handle") (param i32 i32) (result i64) (i64.const 0))
)
