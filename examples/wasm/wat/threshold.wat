;; The smallest function of the core kind: answers whether the event's first number is above 30.
;;
;;   {"value": 31.5}                      -> true
;;   {"data": {"values": [{"value": 7}]}} -> false
;;   anything else                        -> null
;;
;; It looks for the bytes `"value":`. Inside a JSON string a quote is written \", so these bytes can
;; only be a member's name; the name has to be written plainly, with its colon right behind it.
;; Understood are a sign, digits and a fraction; an exponent (3.1e1) makes the answer null.
(module
  (import "engine" "log" (func $log (param $level i32) (param $at i32) (param $length i32)))

  (memory (export "memory") 1)
  (data (i32.const 0) "\"value\":")
  (data (i32.const 8) "true")
  (data (i32.const 16) "false")
  (data (i32.const 24) "null")
  (data (i32.const 32) "above the threshold")

  (global $threshold f64 (f64.const 30))
  (global $free (mut i32) (i32.const 1024)) ;; behind the constants; rises with each alloc

  ;; The engine asks for room here before it writes the event into memory.
  (func $alloc (export "alloc") (param $size i32) (result i32)
    (local $at i32)
    (local.set $at (global.get $free))
    (global.set $free
      (i32.and (i32.add (i32.add (local.get $at) (local.get $size)) (i32.const 7)) (i32.const -8)))
    (if (i32.lt_u (global.get $free) (local.get $at)) ;; around the end of 32 bits
      (then unreachable))
    (if (i32.gt_u (global.get $free) (i32.shl (memory.size) (i32.const 16)))
      (then
        (if (i32.eq (i32.const -1)
              (memory.grow
                (i32.add (i32.const 1)
                  (i32.sub (i32.shr_u (global.get $free) (i32.const 16)) (memory.size)))))
          (then unreachable)))) ;; the version's memory_mb is used up
    (local.get $at))

  ;; Event in, answer out; both are JSON. The result is the answer's address << 32 | its length.
  (func $handle (export "handle") (param $at i32) (param $length i32) (result i64)
    (local $end i32)
    (local $value f64)
    (global.set $free (i32.const 1024)) ;; a reused instance (reuse: true) has room again
    (local.set $end (i32.add (local.get $at) (local.get $length)))
    (local.set $at (call $after_name (local.get $at) (local.get $end)))
    (local.set $value (call $number (local.get $at) (local.get $end)))
    (if (f64.ne (local.get $value) (local.get $value)) ;; NaN: no number was found
      (then (return (call $answer (i32.const 24) (i32.const 4)))))
    (if (f64.gt (local.get $value) (global.get $threshold))
      (then
        (call $log (i32.const 2) (i32.const 32) (i32.const 19)) ;; 2: warn
        (return (call $answer (i32.const 8) (i32.const 4)))))
    (call $answer (i32.const 16) (i32.const 5)))

  (func $answer (param $at i32) (param $length i32) (result i64)
    (i64.or
      (i64.shl (i64.extend_i32_u (local.get $at)) (i64.const 32))
      (i64.extend_i32_u (local.get $length))))

  ;; Returns the address behind the first `"value":` and spaces, or $end.
  (func $after_name (param $at i32) (param $end i32) (result i32)
    (block $none
      (loop $next
        (br_if $none (i32.gt_u (i32.add (local.get $at) (i32.const 8)) (local.get $end)))
        (if (i64.ne (i64.load (local.get $at)) (i64.load (i32.const 0))) ;; 8 bytes, as the name has
          (then
            (local.set $at (i32.add (local.get $at) (i32.const 1)))
            (br $next))))
      (local.set $at (i32.add (local.get $at) (i32.const 8)))
      (block $found
        (loop $space
          (br_if $found (i32.ne (call $byte (local.get $at) (local.get $end)) (i32.const 0x20)))
          (local.set $at (i32.add (local.get $at) (i32.const 1)))
          (br $space)))
      (return (local.get $at)))
    (local.get $end))

  ;; Returns the number at $at, or NaN.
  (func $number (param $at i32) (param $end i32) (result f64)
    (local $value f64)
    (local $divisor f64) ;; 0 until the point; then ten times more with each digit
    (local $negative i32)
    (local $digits i32)
    (local $byte i32)
    (if (i32.eq (call $byte (local.get $at) (local.get $end)) (i32.const 0x2d)) ;; -
      (then
        (local.set $negative (i32.const 1))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))))
    (block $over
      (loop $next
        (local.set $byte (call $byte (local.get $at) (local.get $end)))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (if (i32.and (i32.eq (local.get $byte) (i32.const 0x2e)) (f64.eq (local.get $divisor) (f64.const 0))) ;; .
          (then
            (local.set $divisor (f64.const 1))
            (br $next)))
        (local.set $byte (i32.sub (local.get $byte) (i32.const 0x30)))
        (br_if $over (i32.gt_u (local.get $byte) (i32.const 9)))
        (local.set $digits (i32.add (local.get $digits) (i32.const 1)))
        (local.set $value
          (f64.add (f64.mul (local.get $value) (f64.const 10)) (f64.convert_i32_u (local.get $byte))))
        (local.set $divisor (f64.mul (local.get $divisor) (f64.const 10)))
        (br $next)))
    (if (i32.eqz (local.get $digits))
      (then (return (f64.const nan))))
    (if (i32.eq (i32.or (local.get $byte) (i32.const 0x20)) (i32.const 0x35)) ;; e or E, less 0x30
      (then (return (f64.const nan))))
    (if (f64.gt (local.get $divisor) (f64.const 0))
      (then (local.set $value (f64.div (local.get $value) (local.get $divisor)))))
    (if (result f64) (local.get $negative)
      (then (f64.neg (local.get $value)))
      (else (local.get $value))))

  (func $byte (param $at i32) (param $end i32) (result i32)
    (if (result i32) (i32.lt_u (local.get $at) (local.get $end))
      (then (i32.load8_u (local.get $at)))
      (else (i32.const 0)))))
