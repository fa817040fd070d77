;; expect: refused env.abort i32 i64 -> f64
(module
  (import "env" "abort" (func (param i32 i64) (result f64)))
      (memory (export "memory") 1)
      (func (export "alloc") (param i32) (result i32) (i32.const 1024))
      (func (export "handle") (param i32 i32) (result i64) (i64.const 0))
)
