// expect: output_exceeded output_bytes
// 700,000 characters, three bytes each.
function main(p, cb) { cb(null, "\u20ac".repeat(700000)); }
