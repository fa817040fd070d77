// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() {
  Error.stackTraceLimit = Infinity;
  const deep = (n) => (n > 0 ? deep(n - 1) : new Error("x").stack.length);
  for (;;) deep(5000);
}
