// expect: timed_out wall_ms limits=wall_ms=300,cpu_ms=50
function main() { setInterval(() => {}, 20); }
