;; expect: refused memory
(module
  (func (export "x"))
      (memory 1)
)
