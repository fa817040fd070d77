// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { setTimeout(() => {}, { [Symbol.toPrimitive]() { for (;;); } }); }
