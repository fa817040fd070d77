;; expect: cpu_exceeded cpu_ms limits=cpu_ms=50
(module
  (memory (export "memory") 1)
  (data (i32.const 0) "null")
  (func $one (param i32) (result i32) (i32.add (local.get 0) (i32.const 1)))
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (loop $again (drop (call $one (i32.const 1))) (br $again))
    (unreachable))
)
