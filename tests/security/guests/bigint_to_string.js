// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { const big = (1n << 20000000n) - 1n; return big.toString(); }
