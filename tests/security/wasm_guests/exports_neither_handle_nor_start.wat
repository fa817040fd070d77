;; expect: refused handle _start run
(module
  (memory (export "memory") 1)
      (func (export "alloc") (param i32) (result i32) (i32.const 1024))
      (func (export "run"))
)
