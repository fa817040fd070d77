// expect: memory_exceeded memory_mb limits=cpu_ms=2000,memory_mb=16
function main() { for (let i = 0; ; i++) Symbol.for("x".repeat(100) + i); }
