// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { console.log({ toJSON() { for (;;); } }); }
