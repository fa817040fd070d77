// expect: succeeded
function main(p, cb) { cb(null, 1); cb(null, 2); cb("no"); }
