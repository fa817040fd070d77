// expect: succeeded
function main(p, cb) { for (let i = 0; i < 5000; i++) console.log("line " + i + " " + "y".repeat(200)); cb(); }
