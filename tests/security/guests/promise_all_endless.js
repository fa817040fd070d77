// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
export default () => Promise.all({ *[Symbol.iterator]() { for (;;) yield 1; } });
