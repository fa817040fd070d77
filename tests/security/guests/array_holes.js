// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { const holes = []; holes.length = 2 ** 32 - 1; holes.copyWithin(1, 0); }
