// expect: failed|memory_exceeded limits=cpu_ms=2000
function main() { const kept = []; for (;;) kept.push(new SharedArrayBuffer(1e6)); }
