// expect: failed
function main() { return Math.max.apply(null, { length: 2 ** 31 }); }
