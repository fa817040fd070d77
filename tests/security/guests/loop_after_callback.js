// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main(p, cb) { cb(null, "an answer that nobody gets"); for (;;); }
