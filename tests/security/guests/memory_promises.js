// expect: memory_exceeded memory_mb limits=cpu_ms=2000,memory_mb=16
function main() { const kept = []; for (;;) kept.push(new Promise(() => {}).then(() => kept)); }
