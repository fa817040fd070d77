// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { ("\t".repeat(60000) + "x").split(/\s+$/); }
