// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { /^([\p{L}--[a-c]]|[\p{L}&&[d-z]])+$/v.test("d".repeat(40) + "!"); }
