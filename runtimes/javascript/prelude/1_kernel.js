// The heart of an isolate: takes batches of messages, runs handlers, gives back what they did.
//
// Path:   v8_unsafe.py calls pump(batch) -> receive -> handler ... settle -> emit() -> v8_unsafe.py calls take()
// Never:  uses a built-in that the guest could have replaced: all are captured here, before guest code.
//
// The prelude's files are joined in the order of their names into one function; what one file
// declares the next ones see, and the guest sees only what is put on globalThis.

const { apply, construct } = Reflect;
const { parse, stringify } = JSON;
const { now: realNow } = Date;
const { waitAsync, notify } = Atomics;
const { defineProperty, setPrototypeOf, freeze, keys: keysOf, create } = Object;
const { isArray } = Array;
const PromiseOf = Promise;
const then = Promise.prototype.then;
const promiseOf = Promise.resolve.bind(Promise);
const wellFormed = Function.prototype.call.bind(String.prototype.toWellFormed);
const indexOf = Function.prototype.call.bind(String.prototype.indexOf);
const charCodeAt = Function.prototype.call.bind(String.prototype.charCodeAt);
const sliceText = Function.prototype.call.bind(String.prototype.slice);

const START = 0, ANSWER = 1, ABORT = 2; // messages in: runtimes/contract.py
const DONE = 0, CALL = 1, LOG = 2; // messages out

// Shared with the watchdog in the cell's main thread: which run is on the thread, since when it
// changed, its CPU limit, and the log lines that a kill would lose.
const SHARED_LOG_UNITS = 16384;
const shared = new SharedArrayBuffer(16 + 2 * SHARED_LOG_UNITS);
const sharedMark = new Int32Array(shared, 0, 4); // [changes, run, CPU limit in ms, log units used]
const sharedLog = new Uint16Array(shared, 16);

const JSON_DEPTH_MAX = 200; // of results and arguments: every reader of the stored text copes with it
let finished = list(); // runs that ended in this step: the current one, or one that waited for its promise
let current = null; // the run whose code is on the stack, or whose microtasks are being drained
const STEP_UNITS_MAX = 4 * 1024 * 1024; // of host calls in one step: they cross in one frame
let stepUnits = 0;
const CALLS_MAX = 1001; // of one run: the engine ends it with the 1001st
const TOO_MANY_CALLS = freeze(new RangeError("too many host calls in one run")); // one: each would take a stack
let outbox = list(); // JSON texts of messages out
let loadLog = list(); // what the guest logs while its file is evaluated, before any run
const NO_LOG = freeze([]); // until a run says something
const runs = create(null);

// A real macrotask without the host: V8 posts the wake-up of an async waiter as a task, so `work`
// runs after every microtask that is pending now. Two microseconds, where a call from Python is 80.
const waker = new Int32Array(new SharedArrayBuffer(4));
function macrotask(work) {
  const { value: woken } = waitAsync(waker, 0, 0);
  setPrototypeOf(woken, null); // else `then` asks the guest's Promise.prototype.constructor what to make
  apply(then, woken, [work]);
  notify(waker, 0, 1);
}

function pump() {
  "use strict"; // `this` is the batch's JSON text: the one value that crosses without a hand-off
  const batch = parse(this);
  let next = 0;
  function step() {
    leave();
    if (next === batch.length) return emit();
    receive(batch[next++]);
    macrotask(step); // the run's microtasks drain before another run is current
  }
  step();
}

function take() {
  const text = "[" + joinTexts(outbox, ",\n") + "]"; // a line each: the engine reads one at a time
  outbox = list();
  stepUnits = 0;
  return text;
}

function joinTexts(texts, between) {
  let joined = "";
  for (let i = 0; i < texts.length; i++) joined += i === 0 ? texts[i] : between + texts[i];
  return joined;
}

// A list that the guest cannot reach into: with no prototype there is neither push nor a setter.
function list() {
  return setPrototypeOf([], null);
}

function put(to, item) {
  to[to.length] = item;
}

function receive(message) {
  const id = message[1];
  if (message[0] === START) return start(id, message);
  const run = runs[id];
  if (run === undefined) return; // it has ended; the answer is nobody's
  if (message[0] === ABORT) {
    delete runs[id];
    return;
  }
  enter(run, message[3]);
  const call = run.calls === null ? undefined : run.calls[message[2]];
  if (call === undefined) return;
  delete run.calls[message[2]];
  guarded(run, message[4] ? call.resolve : call.reject, message[4] ? message[5] : hostError(message[5]));
}

function start(id, message) {
  const run = {
    id, handler: message[2], now: 0, began: message[3], seed: message[4], cpuMs: message[5],
    outputBytes: message[6], logLines: message[7], logBytes: message[8], context: message[9],
    random: null, calls: null, callCount: 0, timers: null, timerCount: 0, waiting: 0, log: NO_LOG, logged: 0, logUnits: 0, dropped: 0,
    ended: false, ok: true, value: undefined,
  };
  runs[id] = run;
  enter(run, message[3]);
  guarded(run, invoke, message[10]);
}

function enter(run, nowMs) {
  current = run;
  run.now = nowMs;
  sharedMark[1] = run.id;
  sharedMark[2] = run.cpuMs;
  sharedMark[3] = 0;
  sharedMark[0]++;
}

// The step's code and all its microtasks have run: say what was logged, and which runs ended.
function leave() {
  const run = current;
  if (run === null) return;
  if (runs[run.id] === run) flushLog(run);
  const ended = finished;
  if (ended.length > 0) finished = list();
  for (let i = 0; i < ended.length; i++) {
    if (runs[ended[i].id] === ended[i] && ended[i].waiting === 0) finish(ended[i]);
  }
  current = null;
  sharedMark[1] = 0;
  sharedMark[0]++;
}

function finish(run) {
  current = run;
  sharedMark[1] = run.id;
  const done = doneText(run); // guest code still: toJSON, getters
  if (run.log.length > 0 || run.dropped > 0) {
    put(outbox, "[" + LOG + "," + run.id + ",[" + joinTexts(run.log, ",") + "]," + run.dropped + "]");
  }
  put(outbox, done);
  delete runs[run.id];
}

function doneText(run) {
  const head = "[" + DONE + "," + run.id;
  if (!run.ok) return head + ',"threw",' + errorText(run.value) + "]";
  let text;
  try {
    text = jsonText(run.value, "the result");
  } catch (error) {
    return head + ',"threw",' + errorText(error) + "]";
  }
  if (text.length > run.outputBytes) return head + ',"output",' + text.length + "]";
  return head + ',"ok",' + text + "]";
}

// JSON that every reader takes: no half characters, not too deep; "null" for what JSON cannot say.
function jsonText(value, what) {
  const text = stringify(value);
  if (typeof text !== "string") return "null";
  if (isTooDeep(text)) throw new RangeError(what + " is nested deeper than " + JSON_DEPTH_MAX + " levels");
  return indexOf(text, "\\ud") < 0 ? text : withoutHalves(text);
}

function isTooDeep(text) {
  if (text.length < 2 * JSON_DEPTH_MAX) return false;
  let depth = 0, quoted = false;
  for (let i = 0; i < text.length; i++) {
    const unit = charCodeAt(text, i);
    if (quoted) {
      if (unit === 92) i++;
      else if (unit === 34) quoted = false;
    } else if (unit === 34) quoted = true;
    else if (unit === 91 || unit === 123) {
      if (++depth > JSON_DEPTH_MAX) return true;
    } else if (unit === 93 || unit === 125) depth--;
  }
  return false;
}

// JSON.stringify writes half a surrogate pair, and nothing else, as \udXXX.
function withoutHalves(text) {
  let clean = "", from = 0;
  for (let i = 0; i < text.length; i++) {
    if (charCodeAt(text, i) !== 92) continue;
    if (charCodeAt(text, i + 1) === 117 && charCodeAt(text, i + 2) === 100) {
      clean += sliceText(text, from, i) + "\ufffd";
      from = i + 6;
      i += 5;
    } else i++;
  }
  return clean + sliceText(text, from);
}

function end(run, ok, value) {
  if (run.ended) return false;
  run.ended = true;
  run.ok = ok;
  run.value = value;
  put(finished, run);
  return true;
}

// Runs guest code; what it throws ends the run.
function guarded(run, work, argument) {
  try {
    work(argument);
  } catch (error) {
    if (!end(run, false, error)) logLine("error", ["after the end:", error]);
  }
}

// A question to the engine. Answers come back through `receive`, always in the same run.
function hostCall(run, operation, args, resolve, reject) {
  if (run !== null && runs[run.id] !== run) run = aliveInstead();
  if (run === null) throw new Error(operation + " is not possible while the file is being loaded; call it in a handler");
  if (run.callCount >= CALLS_MAX) throw TOO_MANY_CALLS;
  const text = jsonText(args, operation + ": the argument");
  stepUnits += text.length;
  if (stepUnits > STEP_UNITS_MAX) throw new RangeError("too much at once: more than 4 MiB of host calls that nobody awaited");
  const call = ++run.callCount;
  run.calls ??= create(null);
  run.calls[call] = { resolve, reject };
  flushLog(run);
  put(outbox, "[" + CALL + "," + run.id + "," + call + "," + stringify(operation) + "," + text + "]");
}

// Code that waited for a promise of another run goes on in that run's turn, and that run may have
// ended meanwhile. What it asks by a global is then asked by the oldest run that lives: by `env`,
// each run asks for itself.
function aliveInstead() {
  for (const id in runs) return runs[id];
  return null;
}

// The same as a promise. What is refused is thrown where the author asked: the stack is taken here.
function ask(run, operation, args) {
  const asked = new Error();
  return new PromiseOf((resolve, reject) => {
    hostCall(run, operation, args, resolve, (error) => {
      asked.name = error.name;
      asked.message = error.message;
      if (error.code) asked.code = error.code;
      const frames = "" + asked.stack;
      const at = indexOf(frames, "\n    at ");
      asked.stack = error.name + ": " + error.message + (at < 0 ? "" : sliceText(frames, at));
      reject(asked);
    });
  });
}

function flushLog(run) {
  if (run.log.length === 0) return;
  put(outbox, "[" + LOG + "," + run.id + ",[" + joinTexts(run.log, ",") + "],0]");
  run.log = NO_LOG;
}

function hostError(value) {
  const error = new Error(value.message);
  error.name = value.name;
  if (value.code) error.code = value.code;
  return error;
}

function errorText(error) {
  let name = "Error", message = "", stack = "";
  try {
    if (error !== null && typeof error === "object" && "message" in error) {
      name = "" + error.name;
      message = "" + error.message;
      stack = error.stack === undefined ? "" : "" + error.stack;
    } else {
      message = typeof error === "string" ? error : describe(error);
    }
  } catch {
    message = "an error that cannot be shown";
  }
  return stringify({
    __proto__: null,
    name: wellFormed(sliceText(name, 0, 200)),
    message: wellFormed(sliceText(message, 0, 4000)),
    stack: wellFormed(sliceText(stack, 0, 8000)),
  });
}
