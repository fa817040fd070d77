// expect: memory_exceeded memory_mb limits=cpu_ms=2000,memory_mb=16
function main(p, cb) { let all = [1, 2, 3, 4]; for (;;) all = [...all, ...all]; }
