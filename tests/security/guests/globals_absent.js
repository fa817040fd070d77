// expect: succeeded
const NAMES = `process require Deno Bun Buffer global window self document Worker SharedWorker WebSocket XMLHttpRequest EventSource
  importScripts load read readline print quit version d8 gc Realm ShadowRealm Temporal FinalizationRegistry caches navigator
  structuredClone MessageChannel BroadcastChannel postMessage setImmediate __dirname __filename pump emit take`.split(/\s+/);
export default function () {
  const found = NAMES.filter((name) => name in globalThis);
  for (const name of ["wait", "waitAsync"]) if (name in Atomics) found.push("Atomics." + name);
  if (found.length > 0) throw new Error(found.join());
}
