// expect: memory_exceeded memory_mb limits=cpu_ms=2000
function main() { const kept = []; for (;;) kept.push(("x" + kept.length).repeat(1000).split("").join("-")); }
