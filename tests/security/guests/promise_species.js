// expect: cpu_exceeded cpu_ms limits=cpu_ms=50,wall_ms=5000
// Whoever chains to a promise from now on gets one whose settling never ends, the prelude too.
function Endless(executor) { executor(() => { for (;;); }, () => {}); }
function main(p, cb) {
  Object.defineProperty(Promise, Symbol.species, { get: () => Endless });
  cb(null, 1);
  Promise.resolve().then(() => {});
}
