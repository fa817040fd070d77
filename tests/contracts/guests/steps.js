// The steps that both styles of JavaScript take alike. guest.c takes the same ones.
//
// Put before module.js or classic.js; each of them adds the steps that reach out, as `world`.
//
//   {"do": NAME, ...}        one step; its result is the run's
//   [step, ...]              one after the other; their results, in a list
//   an event, whose first value has the key "do": the step is that value
//   anything else            is given back

let countedRuns = 0;

const steps = {
  echo: ({ value }) => value,
  nothing: () => undefined,
  fail: ({ message }) => {
    throw new Error(message);
  },
  try: async ({ step }, world) => {
    try {
      return { value: await perform(step, world) };
    } catch (error) {
      return { error: { message: error.message, code: error.code } };
    }
  },
  repeat: async ({ count, step }, world) => {
    let last = null;
    for (let i = 0; i < count; i++) last = await perform(step, world);
    return last;
  },
  log: ({ level, text }) => console[level](text),
  log_flood: ({ count }) => {
    for (let i = 0; i < count; i++) console.info(`line ${i}`);
  },
  log_long: ({ length }) => console.info("x".repeat(length)),
  clock: () => Date.now(),
  work: ({ loops }) => {
    for (let i = 0; i < loops; i++);
  },
  timer: ({ ms }) => new Promise((resolve) => setTimeout(resolve, ms, null)),
  chance: ({ count }) => [...crypto.getRandomValues(new Uint32Array(count))],
  text: ({ length }) => "x".repeat(length),
  count: () => ++countedRuns,
  spin: () => {
    for (;;);
  },
  allocate: () => {
    for (const kept = []; ; ) kept.push(new Array(10_000).fill(kept.length));
  },
};

async function perform(step, world) {
  if (Array.isArray(step)) {
    const results = [];
    for (const one of step) results.push(await perform(one, world));
    return results;
  }
  const work = steps[step.do] ?? world[step.do];
  if (work === undefined) throw new Error(`there is no step ${step.do}`);
  return work(step, world);
}

async function begin(input, world) {
  const first = (input?.data?.values ?? input?.values)?.[0];
  if (first?.key === "do") return perform(first.value, world);
  return Array.isArray(input) || input?.do !== undefined ? perform(input, world) : input;
}
