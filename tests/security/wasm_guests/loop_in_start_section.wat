;; expect: refused cpu_exceeded
(module
  (memory (export "memory") 1)
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64) (i64.const 0))
  (func $endless (loop $again (br $again)))
  (start $endless)
)
