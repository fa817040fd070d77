// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { for (;;) URL.canParse("http://" + "a.".repeat(5e5) + " "); }
