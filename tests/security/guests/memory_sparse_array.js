// expect: memory_exceeded memory_mb limits=cpu_ms=2000,memory_mb=16
function main() { const sparse = []; for (let i = 0; ; i += 5000) sparse[i % 4294967295] = { i }; }
