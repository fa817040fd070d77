// expect: succeeded
const later = setTimeout, all = globalThis, { ownKeys } = Reflect;
function main(p, cb) {
  for (const name of ownKeys(all)) {
    try { all[name] = () => { throw new Error("another's"); }; } catch {}
  }
  later(() => cb(null, 1), 1);
}
