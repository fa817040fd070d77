// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { /^(?<one>.*)(?<two>.*)(?<three>.*)\k<one>\k<two>\k<three>x$/.test("ab".repeat(400)); }
