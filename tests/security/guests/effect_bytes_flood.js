// expect: effects_exceeded effect_bytes limits=cpu_ms=2000
export default async function (event, env) {
  const values = [{ key: "x", value: "y".repeat(200000) }];
  for (;;) await env.DEVICES.write("nobody", values).catch(() => {});
}
