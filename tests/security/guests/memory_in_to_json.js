// expect: memory_exceeded memory_mb limits=cpu_ms=2000,memory_mb=16
function main(p, cb) { cb(null, { toJSON() { const kept = []; for (;;) kept.push([kept.length]); } }); }
