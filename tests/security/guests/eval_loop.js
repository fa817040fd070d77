// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { for (let i = 0; ; i++) new Function("a", `return ${i}`)((0, eval)(`(${i})`)); }
