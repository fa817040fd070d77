// expect: cpu_exceeded cpu_ms
function main(p, cb) { cb(null, /(a+)+$/.test("a".repeat(40) + "b")); }
