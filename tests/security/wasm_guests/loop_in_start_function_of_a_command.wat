;; expect: cpu_exceeded cpu_ms limits=cpu_ms=50
(module
  (memory (export "memory") 1)
  (func (export "_start")
    (loop $again (br $again)))
)
