// expect: failed|memory_exceeded limits=cpu_ms=2000
function main() { const kept = []; for (;;) kept.push(new WebAssembly.Table({ initial: 10000000, element: "anyfunc" })); }
