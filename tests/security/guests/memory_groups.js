// expect: memory_exceeded memory_mb limits=cpu_ms=2000,memory_mb=16
function main() { return Object.groupBy({ *[Symbol.iterator]() { for (let i = 0; ; i++) yield i; } }, (i) => "k" + i); }
