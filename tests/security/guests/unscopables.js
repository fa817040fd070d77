// expect: succeeded
Array.prototype[Symbol.unscopables] = new Proxy({}, { get() { throw new Error("scope"); } });
Object.prototype[Symbol.toStringTag] = "Promise";
Object.defineProperty(Object.prototype, Symbol.toPrimitive, { value() { throw new Error("primitive"); } });
function main(p, cb) { console.log("x"); cb(null, 1); }
