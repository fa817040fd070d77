// expect: succeeded
Function.prototype.call = Function.prototype.apply = Function.prototype.bind = () => { throw new Error("patched"); };
Reflect.apply = Reflect.construct = Object.defineProperty = Object.keys = Object.create = Object.freeze = Function.prototype.call;
Map.prototype.get = Array.isArray = Array.prototype.push = Atomics.notify = Function.prototype.call;
for (const name of Object.getOwnPropertyNames(String.prototype)) {
  if (typeof ""[name] === "function" && name !== "constructor") String.prototype[name] = Function.prototype.call;
}
function main(p, cb) { console.log("x", {}, new Map([[1, 2]])); setTimeout(() => cb(null, "unharmed"), 1); }
