// expect: succeeded
const later = setTimeout, all = globalThis, { ownKeys } = Reflect;
function main(p, cb) {
  for (const name of ownKeys(all)) delete all[name];
  later(() => cb(null, "nothing is left"), 1);
}
