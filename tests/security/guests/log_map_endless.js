// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() {
  class Endless extends Map { *[Symbol.iterator]() { for (;;) yield ["", ""]; } }
  Map.prototype[Symbol.iterator] = Endless.prototype[Symbol.iterator];
  for (;;) console.log(new Endless());
}
