// expect: succeeded
// Names that mean something to JavaScript, to a terminal or to a path are names like any other, or refused.
const NAMES = [
  "__proto__", "constructor", "toString", "", " ", "../../etc/passwd", "\u0000", "\u001b[31m", "k\u200bv", "\u043av", "\ud800",
  "x".repeat(600),
];
export default async function (event, env) {
  for (const name of NAMES) {
    await env.KV.put(name, { name }).catch(() => {});
    const kept = await env.KV.get(name).catch(() => null);
    if (kept !== null && kept.name !== name.toWellFormed()) throw new Error(JSON.stringify(name));
    const { FN, DEVICES } = env;
    const calls = [FN.call(name, {}), DEVICES.values(name, name), DEVICES.write(name, [{ key: name, value: 1 }])];
    for (const { status } of await Promise.allSettled(calls)) {
      if (status === "fulfilled") throw new Error("taken: " + JSON.stringify(name));
    }
  }
}
