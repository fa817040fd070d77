// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { let all = ["x"]; for (let i = 0; i < 30; i++) all = [all, all]; console.log(all); }
