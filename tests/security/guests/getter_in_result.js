// expect: cpu_exceeded cpu_ms
function main(p, cb) { cb(null, { get x() { for (;;); } }); }
