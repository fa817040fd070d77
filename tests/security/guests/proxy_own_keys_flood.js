// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { Reflect.ownKeys(new Proxy({}, { ownKeys: () => ({ length: 2 ** 22, get 0() { for (;;); } }) })); }
