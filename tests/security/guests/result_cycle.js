// expect: failed
function main(p, cb) { const a = {}; a.a = a; cb(null, a); }
