// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { let i = 0; do i++; while (i >= 0); }
