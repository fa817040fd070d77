;; expect: succeeded limits=memory_mb=8
;; result: null
(module
  (memory (export "memory") 1)
  (func (export "_start")
    (drop (memory.grow (i32.const 127))))
)
