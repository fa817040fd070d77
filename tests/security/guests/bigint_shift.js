// expect: failed
function main() { return 1n << (1n << 40n); }
