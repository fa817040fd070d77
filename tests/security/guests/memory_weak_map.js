// expect: memory_exceeded memory_mb limits=cpu_ms=2000,memory_mb=16
function main() { const weak = new WeakMap(), kept = []; for (;;) { const key = {}; kept.push(key); weak.set(key, [key]); } }
