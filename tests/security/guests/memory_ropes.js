// expect: memory_exceeded memory_mb limits=cpu_ms=2000,memory_mb=16
function main() { let rope = ""; for (let i = 0; ; i++) { rope = "a" + rope + "b"; if (i % 1e6 === 0) rope.charCodeAt(0); } }
