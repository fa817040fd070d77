// expect: failed
function main(p, cb) { cb(null, new Proxy({}, { ownKeys() { throw new Error("no keys"); } })); }
