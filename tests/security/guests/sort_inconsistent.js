// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() {
  const all = Array.from({ length: 50000 }, (_, i) => i);
  for (;;) all.sort(() => { all.length = 50000; return Math.random() - 0.5; });
}
