// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { for (;;) { try { return; } finally { continue; } } }
