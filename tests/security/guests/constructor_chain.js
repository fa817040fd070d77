// expect: failed
function main(p, cb) { cb(null, this.constructor.constructor("return process")().env); }
