// expect: failed
function main(p, cb) { let deep = []; for (let i = 0; i < 1000; i++) deep = [deep]; cb(null, deep); }
