// expect: succeeded
Object.defineProperty(Promise.prototype, "constructor", { get() { throw new Error("constructor"); } });
Promise.resolve = Promise.reject = () => { throw new Error("resolve"); };
function main(p, cb) { setTimeout(() => cb(null, "unharmed"), 1); }
