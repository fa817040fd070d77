// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { return [..."a".repeat(40).matchAll(/(a|a)*b/g)].length; }
