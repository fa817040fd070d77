// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { return Math.max(1, { valueOf() { for (;;); } }); }
