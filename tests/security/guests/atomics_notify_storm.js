// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { const shared = new Int32Array(new SharedArrayBuffer(4)); for (;;) Atomics.notify(shared, 0); }
