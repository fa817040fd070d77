;; expect: refused alloc
(module
  (import "engine" "call" (func $call (param i32 i32) (result i64)))
      (memory (export "memory") 1)
      (func (export "_start"))
)
