;; expect: succeeded
;; result: 54
;; ENOTDIR
(module
  (import "wasi_snapshot_preview1" "path_open" (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 100) "../../../etc/passwd")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func $number (param $n i32) (result i64)
    (local $at i32)
    (local.set $at (i32.const 64))
    (loop $digit
      (local.set $at (i32.sub (local.get $at) (i32.const 1)))
      (i32.store8 (local.get $at)
        (i32.add (i32.const 48) (i32.rem_u (local.get $n) (i32.const 10))))
      (local.set $n (i32.div_u (local.get $n) (i32.const 10)))
      (br_if $digit (local.get $n)))
    (i64.or
      (i64.shl (i64.extend_i32_u (local.get $at)) (i64.const 32))
      (i64.extend_i32_u (i32.sub (i32.const 64) (local.get $at)))))
  (func (export "handle") (param i32 i32) (result i64)
    (call $number (call $path_open (i32.const 0) (i32.const 0) (i32.const 100) (i32.const 19) (i32.const 0) (i64.const 2) (i64.const 2) (i32.const 0) (i32.const 200))))
)
