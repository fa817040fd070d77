// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { let text = "aa"; for (;;) text = text.replaceAll("a", "a b").slice(0, 1e6); }
