// expect: failed
function main(p, cb) { const m = new WebAssembly.Memory({ initial: 30000 }); cb(null, m.buffer.byteLength); }
