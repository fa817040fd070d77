// expect: memory_exceeded memory_mb
const kept = [];
export default async function (event, env) {
  for (let i = 0; i < 500; i++) {
    try { for (;;) kept.push(new ArrayBuffer(1e6)); } catch {} // caught: the cell is left with next to nothing
    await env.KV.get("anything"); // and has to work with that
  }
}
