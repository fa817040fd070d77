;; expect: succeeded limits=cpu_ms=2000
(module
  (memory (export "memory") 17)
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (local $at i32)
    (i32.store8 (i32.const 1023) (i32.const 0x5b))
    (local.set $at (i32.const 1024))
    (loop $lists
      (i32.store (local.get $at) (i32.const 0x2c5d5b)) (; [], ;)
      (local.set $at (i32.add (local.get $at) (i32.const 3)))
      (br_if $lists (i32.lt_u (local.get $at) (i32.const 1021024))))
    (i32.store16 (i32.const 1021024) (i32.const 0x5d30)) (; 0] ;)
    (i64.const 0x000003ff_000f9063))
)
