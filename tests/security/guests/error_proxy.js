// expect: failed
const refuse = () => { throw new Error("trapped"); };
function main() { throw new Proxy(new Error("x"), { get: refuse, has: refuse, getPrototypeOf: refuse }); }
