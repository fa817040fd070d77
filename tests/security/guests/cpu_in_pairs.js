// expect: cpu_exceeded cpu_ms
export default async function (event, env) {
  const burn = () => { for (let i = 0; i < 3e6; i++) Math.sqrt(i); };
  const ask = () => env.DEVICES.values("nobody", "x").catch(() => {}).then(burn);
  for (;;) await Promise.all([ask(), ask()]);
}
