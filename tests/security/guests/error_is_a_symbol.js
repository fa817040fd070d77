// expect: failed
function main() { throw Symbol("x"); }
