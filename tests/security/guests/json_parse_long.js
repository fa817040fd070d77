// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { for (;;) JSON.parse("[" + "1,".repeat(5e5) + "1]"); }
