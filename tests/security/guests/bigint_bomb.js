// expect: cpu_exceeded cpu_ms
function main(p, cb) { let n = 7n; for (;;) n = n * n; }
