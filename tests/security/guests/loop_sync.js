// expect: cpu_exceeded cpu_ms
function main() { for (;;); }
