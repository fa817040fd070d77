// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { JSON.parse("[1, 2, 3]", () => { for (;;); }); }
