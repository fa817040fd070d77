;; expect: failed limits=cpu_ms=2000
;; error: ResultError
;; Brackets, then one string that is full of \" and never closed: a search for its end from each
;; quote takes an hour.
(module
  (memory (export "memory") 17)
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (local $at i32)
    (local.set $at (i32.const 1024))
    (loop $pairs
      (i32.store (local.get $at) (i32.const 0x5d5b5d5b)) (; [][] ;)
      (local.set $at (i32.add (local.get $at) (i32.const 4)))
      (br_if $pairs (i32.lt_u (local.get $at) (i32.const 2048))))
    (i32.store8 (local.get $at) (i32.const 0x22))
    (local.set $at (i32.add (local.get $at) (i32.const 1)))
    (loop $quotes
      (i32.store16 align=1 (local.get $at) (i32.const 0x225c)) (; a backslash, a quote ;)
      (local.set $at (i32.add (local.get $at) (i32.const 2)))
      (br_if $quotes (i32.lt_u (local.get $at) (i32.const 1000000))))
    (i64.const 0x00000400_000f3e41))
)
