// expect: succeeded limits=cpu_ms=2000
// Leaves nothing for anybody to write to, and goes on.
function main(p, cb) {
  const seen = new Set(), rest = [globalThis];
  while (rest.length > 0) {
    const at = rest.pop();
    if (at === null || (typeof at !== "object" && typeof at !== "function") || seen.has(at)) continue;
    seen.add(at);
    for (const { value, get } of Object.values(Object.getOwnPropertyDescriptors(at))) rest.push(value, get);
    rest.push(Object.getPrototypeOf(at));
    try { Object.freeze(at); } catch {}
  }
  console.log("frozen");
  setTimeout(() => cb(null, 1), 1);
}
