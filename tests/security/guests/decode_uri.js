// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { for (;;) decodeURIComponent("%F0%9F%98%80".repeat(1e5)); }
