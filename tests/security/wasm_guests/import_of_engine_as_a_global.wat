;; expect: refused engine.call global
(module
  (import "engine" "call" (global i32))
      (memory (export "memory") 1)
      (func (export "alloc") (param i32) (result i32) (i32.const 1024))
      (func (export "handle") (param i32 i32) (result i64) (i64.const 0))
)
