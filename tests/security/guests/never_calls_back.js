// expect: timed_out wall_ms limits=wall_ms=500
function main() {}
