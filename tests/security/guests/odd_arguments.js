// expect: succeeded
// Each call is refused, or does nothing; none hangs and none takes the cell down.
const ODD = [undefined, null, NaN, -0, 1e308, [], {}, "", Symbol.iterator, () => 1, 2n, new Date(NaN), new Proxy({}, {}), console];
export default async function (event, env, ctx) {
  const { KV, FN, DEVICES } = env;
  for (const call of [KV.get, KV.put, KV.list, KV.delete, FN.call, DEVICES.values, DEVICES.write, ctx.progress]) {
    for (const odd of ODD.slice(0, 12)) try { await call(odd, odd, odd); } catch {}
  }
  for (const odd of ODD) {
    try { await fetch(odd, odd); } catch {}
    try { clearTimeout(odd); setTimeout(() => {}, odd); } catch {}
  }
}
