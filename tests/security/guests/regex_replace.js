// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { "x".repeat(30).replace(/(x+x+)+y/g, "z"); }
