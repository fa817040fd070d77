;; expect: failed
;; error: Trap unreachable
(module
  (memory (export "memory") 1)
  (func (export "_start")
    (unreachable))
)
