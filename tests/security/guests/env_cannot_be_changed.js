// expect: succeeded
export default function (event, env) {
  const before = env.KV;
  for (const change of [() => { env.KV = 1; }, () => { env.NEW = 1; }, () => { delete env.KV; }, () => Object.setPrototypeOf(env, {})]) {
    try { change(); } catch {}
  }
  if (env.KV !== before || "NEW" in env) throw new Error("env was changed");
}
