// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { return BigInt("9".repeat(5e6)) > 1n; }
