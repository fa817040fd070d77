;; expect: cpu_exceeded cpu_ms limits=cpu_ms=50
(module
  (memory (export "memory") 1)
  (data (i32.const 0) "null")
  (table $t 100000 funcref)
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (loop $again
      (table.copy $t $t (i32.const 0) (i32.const 1) (i32.const 99999))
      (br $again))
    (unreachable))
)
