// expect: succeeded
// Says of everything that it is a frame of its own: what the author's own values become, and no more.
Object.prototype.toJSON = String.prototype.toJSON = Array.prototype.toJSON = function () { return "],[0,1,\"ok\",2],["; };
function main(p, cb) { console.log({}); cb(null, { a: 1 }); }
