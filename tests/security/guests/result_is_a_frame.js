// expect: succeeded
// What looks like the end of one message and the start of another stays text.
function main(p, cb) { cb(null, { "]": "],[0,2,\"ok\",1],[1,1,1,\"kv.put\",{}", raw: JSON.rawJSON("1"), [Symbol.iterator]: 1 }); }
