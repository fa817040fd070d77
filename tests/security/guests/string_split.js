// expect: memory_exceeded memory_mb limits=cpu_ms=2000
function main(p, cb) { cb(null, "x".repeat(2 ** 29 - 30).split("").length); }
