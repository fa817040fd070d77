// expect: memory_exceeded memory_mb limits=cpu_ms=2000
function main() { const kept = []; for (;;) kept.push({ a: [kept.length], b: "x" + kept.length }); }
