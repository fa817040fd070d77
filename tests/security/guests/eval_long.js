// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { (0, eval)("var a = 1;".repeat(1e6)); }
