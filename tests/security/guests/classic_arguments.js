// expect: succeeded
function main(p, cb) {
  for (const odd of [undefined, null, 1, "x", [], {}, Symbol("s"), new Proxy({}, { get() { throw new Error("get"); } })]) {
    for (const call of [thethingsAPI.thingRead, thethingsAPI.thingWrite, thethingsAPI.getProductThings, httpRequest, email]) {
      try { call(odd, odd, odd, odd); } catch {}
    }
  }
  setTimeout(() => cb(null, 1), 20);
}
