// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
export default async function () { for (;;) await null; }
