;; expect: cpu_exceeded cpu_ms limits=cpu_ms=50
(module
  (tag $thrown (param i64))
  (memory (export "memory") 1)
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (loop $again
      (block $caught (result i64)
        (try_table (catch $thrown $caught) (throw $thrown (i64.const 1)))
        (i64.const 0))
      (drop)
      (br $again))
    (i64.const 0))
)
