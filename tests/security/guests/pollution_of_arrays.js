// expect: succeeded
for (let i = 0; i < 12; i++) Object.defineProperty(Array.prototype, i, { set() { throw new Error("an index"); }, get: () => "forged" });
Array.prototype[Symbol.iterator] = function* () { yield "forged"; };
function main(p, cb) { console.log("x"); setTimeout(() => cb(null, "unharmed"), 1); }
