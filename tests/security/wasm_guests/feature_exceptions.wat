;; expect: failed
;; error: Trap uncaught exception
(module
  (tag $thrown)
  (memory (export "memory") 1)
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64) (throw $thrown))
)
