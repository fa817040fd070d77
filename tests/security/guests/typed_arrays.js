// expect: failed
function main() { const kept = []; for (;;) kept.push(new Uint8Array(1e7)); }
