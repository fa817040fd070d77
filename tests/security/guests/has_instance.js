// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() {
  Object.defineProperty(Error, Symbol.hasInstance, { value() { for (;;); } });
  console.log({});
}
