// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { new Float64Array(10).sort(() => { for (;;); }); }
