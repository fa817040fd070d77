// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() {
  const traps = new Proxy({}, { get: (_, name) => () => { for (;;) Reflect[name]; } });
  for (const use of [(p) => p.x, (p) => Object.keys(p)]) use(new Proxy({}, traps));
}
