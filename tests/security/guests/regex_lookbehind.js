// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { /(?<=b(?:a|aa)*)c/.test("a".repeat(60) + "c"); }
