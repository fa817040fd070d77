// expect: failed|memory_exceeded limits=cpu_ms=2000,memory_mb=32
function main() { const kept = []; for (;;) kept.push(new Uint8Array(64)); }
