// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { outer: for (;;) { for (let i = 0; ; i++) if (i > 10) continue outer; } }
