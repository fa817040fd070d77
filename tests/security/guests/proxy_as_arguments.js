// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
// The prelude reads what it is given to ask the engine for.
export default (event, env) => env.KV.get("k", new Proxy({}, { get() { for (;;); } }));
