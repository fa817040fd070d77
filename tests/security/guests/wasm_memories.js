// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { const kept = []; for (;;) kept.push(new WebAssembly.Memory({ initial: 1, maximum: 65536 })); }
