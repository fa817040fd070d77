// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
export default async function () {
  async function* forever() { for (;;) yield 0; }
  for await (const _ of forever());
}
