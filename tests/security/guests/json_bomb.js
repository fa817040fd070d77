// expect: cpu_exceeded cpu_ms
function main(p, cb) { let a = ["x"]; for (let i = 0; i < 40; i++) a = [a, a]; cb(null, a); }
