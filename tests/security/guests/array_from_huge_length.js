// expect: failed
function main() { Array.from({ length: 2 ** 53 - 1 }, () => 0); }
