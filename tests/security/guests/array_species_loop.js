// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() {
  class Slow extends Array { static get [Symbol.species]() { for (;;); } }
  Slow.from([1, 2]).map((x) => x);
}
