// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { const names = []; names.length = 2 ** 32 - 1; JSON.stringify({}, names); }
