// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main(p, cb) { let all = ["x"]; for (let i = 0; i < 40; i++) all = [all, all]; cb(null, String(all).length); }
