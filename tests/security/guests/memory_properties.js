// expect: memory_exceeded memory_mb limits=cpu_ms=2000,memory_mb=16
function main() { const wide = {}; for (let i = 0; ; i++) wide["k" + i] = i; }
