// Time stands still between host calls, and chance comes from the run's recorded seed: a run can be
// repeated exactly. Timers are host calls: the engine waits, and its answer moves the clock.

const RealDate = Date;
let loadedAt = realNow();

function nowMs() {
  return current === null ? loadedAt : current.now;
}

function VirtualDate(...parts) {
  if (new.target === undefined) return new RealDate(nowMs()).toString();
  return construct(RealDate, parts.length === 0 ? [nowMs()] : parts, new.target);
}
VirtualDate.prototype = RealDate.prototype;
defineProperty(VirtualDate, "name", { value: "Date" });
defineProperty(VirtualDate, "length", { value: 7 });
defineProperty(VirtualDate, "prototype", { writable: false, enumerable: false });
defineProperty(RealDate.prototype, "constructor", { value: VirtualDate, writable: true, configurable: true });
for (const name of ["parse", "UTC"]) defineProperty(VirtualDate, name, { value: RealDate[name], writable: true, configurable: true });
defineProperty(VirtualDate, "now", { value: function now() { return nowMs(); }, writable: true, configurable: true });
globalThis.Date = VirtualDate;
// Intl reads the real clock when it is given no date.
const { format: intlFormat, formatToParts } = Object.getOwnPropertyDescriptors(Intl.DateTimeFormat.prototype);
defineProperty(Intl.DateTimeFormat.prototype, "format", {
  configurable: true,
  get() {
    const format = apply(intlFormat.get, this, []);
    return (date) => format(date === undefined ? nowMs() : date);
  },
});
defineProperty(Intl.DateTimeFormat.prototype, "formatToParts", {
  configurable: true, writable: true,
  value: function (date) { return apply(formatToParts.value, this, [date === undefined ? nowMs() : date]); },
});

globalThis.performance = { now: () => (current === null ? 0 : current.now - current.began), timeOrigin: loadedAt };
delete globalThis.Temporal; // Temporal.Now reads the real clock
delete Atomics.wait; // would block the isolate's only thread
delete Atomics.waitAsync;
delete globalThis.FinalizationRegistry; // its callbacks run when the collector likes: between runs, on nobody's account

// xoshiro128** (Blackman and Vigna), seeded by splitmix32 over the run's 64-bit seed.
function seeded(seedHex) {
  let mix = (parseInt(sliceText(seedHex, 0, 8), 16) ^ parseInt(sliceText(seedHex, 8, 16), 16)) >>> 0;
  const word = () => {
    mix = (mix + 0x9e3779b9) >>> 0;
    let z = mix;
    z = imul(z ^ (z >>> 16), 0x21f0aaad);
    z = imul(z ^ (z >>> 15), 0x735a2d97);
    return (z ^ (z >>> 15)) >>> 0;
  };
  let a = word() ^ parseInt(sliceText(seedHex, 0, 8), 16), b = word(), c = word() ^ parseInt(sliceText(seedHex, 8, 16), 16), d = word() | 1;
  const rotate = (x, k) => (x << k) | (x >>> (32 - k));
  return () => {
    const result = imul(rotate(imul(b, 5), 7), 9) >>> 0;
    const t = b << 9;
    c ^= a; d ^= b; b ^= c; a ^= d; c ^= t;
    d = rotate(d, 11);
    return result;
  };
}
const imul = Math.imul;

let loadRandom = seeded("00000000000000ff");
function randomWord() {
  if (current === null) return loadRandom();
  return (current.random ??= seeded(current.seed))();
}

Math.random = function random() {
  return ((randomWord() >>> 5) * 67108864 + (randomWord() >>> 6)) / 9007199254740992;
};

const hexDigits = "0123456789abcdef";
globalThis.crypto = {
  getRandomValues(array) {
    const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
    if (bytes.length > 65536) throw new RangeError("getRandomValues gives at most 65536 bytes a call");
    for (let i = 0; i < bytes.length; i++) bytes[i] = randomWord() & 255;
    return array;
  },
  randomUUID() {
    let text = "";
    for (let i = 0; i < 32; i++) {
      let nibble = randomWord() & 15;
      if (i === 12) nibble = 4;
      if (i === 16) nibble = (nibble & 3) | 8;
      text += hexDigits[nibble] + (i === 7 || i === 11 || i === 15 || i === 19 ? "-" : "");
    }
    return text;
  },
};

function setTimer(work, delay, repeat, args) {
  if (typeof work !== "function") throw new TypeError("a timer needs a function");
  const run = current;
  if (run === null) throw new Error("timers are not possible while the file is being loaded; use them in a handler");
  const timer = ++run.timerCount; // per run: a repeated run gives the same ids
  const ms = delay > 0 && delay <= 2147483647 ? +delay : 0; // as in browsers: the rest is 0
  const fire = () => {
    if (!run.timers[timer]) return; // cleared
    if (repeat) arm();
    else delete run.timers[timer];
    apply(work, undefined, args);
  };
  const arm = () => hostCall(run, "timer", { ms: ms < 1 ? 1 : ms }, fire, (error) => end(run, false, error));
  run.timers ??= create(null);
  run.timers[timer] = true;
  arm();
  return timer;
}

function clearTimer(timer) {
  if (current !== null && current.timers !== null && typeof timer === "number") delete current.timers[timer];
}

globalThis.setTimeout = (work, delay, ...args) => setTimer(work, delay, false, args);
globalThis.setInterval = (work, delay, ...args) => setTimer(work, delay, true, args);
globalThis.clearTimeout = clearTimer;
globalThis.clearInterval = clearTimer;
globalThis.queueMicrotask = (work) => {
  const run = current;
  apply(then, promiseOf(), [() => (run === null ? work() : guarded(run, work))]);
};
