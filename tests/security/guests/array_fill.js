// expect: memory_exceeded memory_mb limits=cpu_ms=2000
function main(p, cb) { cb(null, new Array(2 ** 26).fill(1).length); }
