// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { String.raw({ raw: { length: 2 ** 53 - 1 } }); }
