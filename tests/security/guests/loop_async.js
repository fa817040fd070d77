// expect: cpu_exceeded cpu_ms
export default async function () { await 0; for (;;); }
