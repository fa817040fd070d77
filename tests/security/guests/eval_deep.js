// expect: failed
function main() { (0, eval)("(".repeat(2e5)); }
