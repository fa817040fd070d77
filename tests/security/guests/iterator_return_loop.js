// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() {
  const [first] = { [Symbol.iterator]: () => ({ next: () => ({ done: false, value: 1 }), return() { for (;;); } }) };
  return first;
}
