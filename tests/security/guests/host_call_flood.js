// expect: host_calls_exceeded host_calls
export default async function (event, env) { for (;;) { try { await env.DEVICES.values("nobody", "x"); } catch {} } }
