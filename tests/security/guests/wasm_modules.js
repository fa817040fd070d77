// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { const kept = []; for (;;) kept.push(new WebAssembly.Module(new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0]))); }
