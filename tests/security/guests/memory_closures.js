// expect: memory_exceeded memory_mb limits=cpu_ms=2000,memory_mb=16
function main() { let last = null; for (;;) { const before = last; last = () => before; } }
