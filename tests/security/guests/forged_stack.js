// expect: failed
function main(p, cb) { cb({ message: "x", stack: "1:".repeat(4000) }); }
