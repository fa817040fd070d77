// expect: succeeded
function main(p, cb) { console.log(...new Array(50000).fill("x".repeat(1000))); cb(null, 1); }
