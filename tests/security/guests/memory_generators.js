// expect: memory_exceeded memory_mb limits=cpu_ms=2000,memory_mb=16
function main() { const kept = []; for (;;) { const g = (function* () { yield kept; })(); g.next(); kept.push(g); } }
