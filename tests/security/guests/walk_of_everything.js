// expect: succeeded limits=cpu_ms=2000
// Nothing that can be reached from the global object, `env` and `ctx` is the prelude's own state.
export default function (event, env, ctx) {
  const seen = new Set(), rest = [globalThis, event, env, ctx, (function* () {})(), (async function* () {})(), /x/, new Map().entries()];
  const found = [];
  while (rest.length > 0) {
    const at = rest.pop();
    if (at === null || (typeof at !== "object" && typeof at !== "function") || seen.has(at)) continue;
    seen.add(at);
    rest.push(Object.getPrototypeOf(at));
    for (const name of Reflect.ownKeys(at)) {
      if (/^(pump|emit|runs|outbox|sharedMark|sharedLog|shared|bindings|handlers)$/.test(String(name))) found.push(name);
      const { value, get, set } = Object.getOwnPropertyDescriptor(at, name);
      rest.push(value, get, set);
    }
    if (at instanceof SharedArrayBuffer && at !== SharedArrayBuffer.prototype) found.push("shared page");
    if (ArrayBuffer.isView(at)) found.push("view of a page");
  }
  if (seen.size < 500 || found.length > 0) throw new Error(`${seen.size} ${found.join()}`);
  return 1;
}
