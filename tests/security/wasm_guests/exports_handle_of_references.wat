;; expect: refused handle
(module
  (memory (export "memory") 1)
      (func (export "alloc") (param i32) (result i32) (i32.const 1024))
      (func (export "handle") (param externref) (result externref) (local.get 0))
)
