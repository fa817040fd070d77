// expect: succeeded
// Every function of the engine's leads to this isolate's own global object, and to nothing else.
export default function (event, env, ctx) {
  for (const given of [env, env.KV, env.KV.get, ctx, ctx.waitUntil, console, console.log, fetch, setTimeout, Response]) {
    const found = given.constructor.constructor("return globalThis")();
    if (found !== globalThis) throw new Error("another world");
  }
  return 1;
}
