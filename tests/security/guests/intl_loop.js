// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { for (let i = 0; ; i++) new Intl.DateTimeFormat("ar-EG", { dateStyle: "full" }).format(i); }
