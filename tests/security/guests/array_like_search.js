// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { Array.prototype.indexOf.call({ length: 2 ** 53 - 1 }, 1); }
