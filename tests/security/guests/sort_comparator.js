// expect: cpu_exceeded cpu_ms
function main(p, cb) { [3, 2, 1].sort(() => { for (;;); }); cb(); }
