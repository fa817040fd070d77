// expect: cpu_exceeded cpu_ms
function main(p, cb) { cb(null, { toJSON() { for (;;); } }); }
