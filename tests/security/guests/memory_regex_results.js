// expect: memory_exceeded memory_mb limits=cpu_ms=2000,memory_mb=16
function main() { return [..."a".repeat(1e7).matchAll(/a/g)].length; }
