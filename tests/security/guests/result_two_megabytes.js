// expect: output_exceeded output_bytes
function main(p, cb) { cb(null, "x".repeat(2e6)); }
