// expect: output_exceeded output_bytes limits=cpu_ms=2000
function main(p, cb) { cb(null, Array.from({ length: 200000 }, (_, i) => ({ i }))); }
