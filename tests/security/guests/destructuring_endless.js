// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { const [...all] = { *[Symbol.iterator]() { for (;;) yield 1; } }; return all; }
