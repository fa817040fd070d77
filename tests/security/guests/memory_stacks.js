// expect: memory_exceeded memory_mb limits=cpu_ms=2000,memory_mb=16
function main() {
  Error.stackTraceLimit = Infinity;
  const kept = [];
  const deep = (n) => { if (n > 0) deep(n - 1); kept.push(new Error("x")); };
  for (;;) deep(2000);
}
