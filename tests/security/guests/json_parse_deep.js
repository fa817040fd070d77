// expect: failed limits=cpu_ms=2000
function main() { return JSON.parse("[".repeat(3e6)); }
