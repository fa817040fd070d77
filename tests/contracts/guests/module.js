// A module: what reaches out goes by `env`, what the run is about is in `ctx`.

const worldOf = (handler, env, ctx) => ({
  env: ({ names }) => names.map((name) => env[name] ?? null),
  context: () => ({ handler, ...ctx }),
  read: async ({ device, key, ...options }) => (await env.DEVICES.values(device, key, options)).map((one) => one.value),
  write: async ({ device, values }) => void (await env.DEVICES.write(device, values)),
  list: async () => (await env.DEVICES.list()).map((device) => device.name),
  kv: ({ operation, key, value, namespace, ttl_seconds: ttlSeconds, prefix, limit, cursor }) => {
    if (operation === "put") return env.KV.put(key, value, { namespace, ttlSeconds });
    if (operation === "list") return env.KV.list({ prefix, limit, cursor, namespace });
    return env.KV[operation](key, { namespace });
  },
  progress: ({ value, message }) => ctx.progress(value, message),
  send: ({ connection, message }) => env[connection].send(message),
  fetch: async ({ url, method = "GET", body }) => {
    const response = await fetch(url, { method, body: body === undefined ? undefined : JSON.stringify(body) });
    return { status: response.status, mine: response.headers.get("x-mine"), body: await response.text() };
  },
});
const handling = (handler) => (input, env, ctx) => begin(input, worldOf(handler, env, ctx));

export default handling("default");
export const job = handling("job");
export const afterStore = handling("afterStore");

async function mirror(request) {
  const { method, url } = request;
  const type = request.headers.get("content-type") ?? "text/plain";
  return new Response(await request.bytes(), { status: 201, headers: { "content-type": type, "x-method": method, "x-url": url } });
}
export { mirror as fetch };
