// expect: succeeded
function main(p, cb) { console.log("x".repeat(2e7)); console.log(..."ab"); cb(null, 1); }
