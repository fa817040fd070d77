;; expect: succeeded limits=cpu_ms=2000
;; result: null
(module
  (import "engine" "log" (func $log (param i32 i32 i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "null")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (local $n i32)
    (local.set $n (i32.const 5000))
    (loop $again
      (call $log (local.get $n) (i32.const 100) (i32.const 200))
      (br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
    (i64.const 4))
)
