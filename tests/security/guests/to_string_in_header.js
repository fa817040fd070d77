// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
export default () => fetch("http://127.0.0.1:9/", { headers: { a: { toString() { for (;;); } } } });
