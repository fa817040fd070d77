// expect: failed limits=cpu_ms=2000
function main() { const memory = new WebAssembly.Memory({ initial: 1 }); for (;;) memory.grow(100); }
