// expect: succeeded
function main(p, cb) {
  try { Object.setPrototypeOf(globalThis, new Proxy({}, { has: () => true, get() { throw new Error("trapped"); } })); } catch {}
  setTimeout(() => cb(null, 1), 1);
}
