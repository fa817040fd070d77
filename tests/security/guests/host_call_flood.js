// expect: host_calls_exceeded host_calls limits=cpu_ms=2000
export default async function (event, env) { for (;;) { try { await env.DEVICES.values("nobody", "x"); } catch {} } }
