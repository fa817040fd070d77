// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { for (let i = 0; ; i++) new RegExp(`(?:a{1,${(i % 900) + 100}}){1,500}${i}`).test("a"); }
