// Finds the author's handlers in whichever of the three styles they are written, and calls them.

const MODULE_HANDLERS = ["fetch", "beforeStore", "afterStore", "scheduled", "job", "queue", "decodeUplink"];
const CLASSIC_HANDLERS = ["trigger", "job", "main"];
const modules = create(null); // file name -> {body, exports, imports} of the bundle
let handlers = create(null); // handler name -> (input) => void, which ends the current run
let bindings = { variables: {}, secrets: {}, connections: {} }; // of the version, once it is loaded

// Takes one file of the program: `this` is JSON {name, imports}, `body` its compiled function.
function define(body) {
  "use strict";
  const { name, imports } = parse(this);
  modules[name] = { body, exports: null, imports };
}

function load(name) {
  const module = modules[name];
  if (module.exports === null) {
    module.exports = {};
    module.body(module.exports, (specifier) => load(module.imports[specifier]));
  }
  return module.exports;
}

// Evaluates the main module (classic scripts have been evaluated already) and lists the handlers.
function ready() {
  "use strict"; // `this` is JSON {main, bindings, now}
  const header = parse(this);
  const { main, now } = header;
  loadedAt = now;
  bindings = header.bindings;
  handlers = create(null);
  settleNotifiers(modules[main] === undefined);
  if (modules[main] !== undefined) findModuleHandlers(load(main));
  else findClassicHandlers();
  const log = loadLog;
  loadLog = list();
  return '{"handlers":[' + joinTexts(quoted(keysOf(handlers)), ",") + '],"log":[' + joinTexts(quoted(log), ",") + "]}";
}

// Each text alone: of arrays and objects JSON.stringify asks the guest's `toJSON`.
function quoted(texts) {
  const done = list();
  for (let i = 0; i < texts.length; i++) put(done, stringify(texts[i]));
  return done;
}

function findModuleHandlers(exported) {
  const standard = exported.default;
  for (let i = 0; i < MODULE_HANDLERS.length; i++) {
    const name = MODULE_HANDLERS[i];
    const holder = standard !== null && typeof standard === "object" && typeof standard[name] === "function" ? standard : exported;
    const handler = holder[name];
    if (typeof handler === "function") handlers[name] = (input) => invokeModule(holder, handler, name, input);
  }
  if (typeof standard === "function") handlers.default = (input) => invokeModule(undefined, standard, "default", input);
}

function findClassicHandlers() {
  const common = globalThis.module?.exports ?? {}; // TypeScript and CommonJS output
  for (let i = 0; i < CLASSIC_HANDLERS.length; i++) {
    const name = CLASSIC_HANDLERS[i];
    const handler = classicGlobal(name) ?? common[name];
    if (typeof handler === "function") handlers[name] = (input) => invokeClassic(handler, input);
  }
}

function classicGlobal(name) {
  if (typeof globalThis[name] === "function") return globalThis[name];
  try {
    return indirectEval(`typeof ${name} === "function" ? ${name} : undefined`); // const main = ...
  } catch {
    return undefined;
  }
}
const indirectEval = eval;

function invoke(input) {
  const handler = handlers[current.handler];
  if (handler === undefined) throw new Error(`this version has no handler ${stringify(current.handler)}; it has: ${keysOf(handlers).join(", ") || "none"}`);
  handler(input);
}

function invokeModule(holder, handler, name, input) {
  const run = current;
  const context = contextOf(run);
  const batch = name === "queue" ? batchOf(input) : null;
  const given = batch !== null ? batch.shown : name === "fetch" ? requestOf(input) : input;
  const returned = apply(handler, holder, [given, envOf(run), context]);
  const conclude = (value) => {
    if (batch !== null) return end(run, true, batch.verdict());
    if (name !== "fetch") return end(run, true, value);
    if (!(value instanceof Response)) return end(run, false, new TypeError("the fetch handler has to return a Response"));
    const wire = { status: value.status, headers: [...value.headers], ...Body.wire(value) };
    return end(run, true, wire);
  };
  apply(then, promiseOf(returned), [(value) => guarded(run, conclude, value), (error) => end(run, false, error)]);
}

function requestOf(input) {
  const body = input.body_base64 ? Uint8Array.fromBase64(input.body) : input.body;
  const bodyless = input.method === "GET" || input.method === "HEAD";
  return new Request(input.url, { method: input.method, headers: input.headers, body: bodyless ? undefined : body });
}

// What the `queue` handler gets. It says of each message what becomes of it: the first word counts,
// its own before the whole batch's, and silence means done. The engine gets what is to come again.
function batchOf(input) {
  const { queue, messages } = input;
  const said = create(null); // message id -> {delaySeconds}, or null: done
  let ofTheRest; // the same for those that said nothing
  const again = (options) => ({ delaySeconds: options?.delaySeconds });
  for (let i = 0; i < messages.length; i++) {
    const { id, timestamp, body, attempts } = messages[i];
    const say = (word) => { if (said[id] === undefined) said[id] = word; };
    messages[i] = freeze({
      id, timestamp: new RealDate(timestamp), body, attempts,
      ack: () => say(null), retry: (options) => say(again(options)),
    });
  }
  const ids = list();
  for (let i = 0; i < messages.length; i++) put(ids, messages[i].id);
  const sayForAll = (word) => { if (ofTheRest === undefined) ofTheRest = word; };
  const verdict = () => {
    let retry = "";
    for (let i = 0; i < ids.length; i++) {
      const word = said[ids[i]] === undefined ? ofTheRest : said[ids[i]];
      if (word) retry += (retry && ",") + stringify({ __proto__: null, id: ids[i], delaySeconds: word.delaySeconds });
    }
    return parse('{"retry":[' + retry + "]}");
  };
  const shown = freeze({ queue, messages: freeze(messages), ackAll: () => sayForAll(null), retryAll: (options) => sayForAll(again(options)) });
  return { shown, verdict };
}

function contextOf(run) {
  const { 0: executionId, 1: functionVersion, 2: attempt, 3: deadline, 4: rootId, 5: depth } = run.context;
  return {
    executionId, functionVersion, attempt, deadline, rootId, depth, dryRun: false,
    progress: (value, message) => ask(run, "job.progress", { value, message }),
    waitUntil(promise) {
      run.waiting++;
      const settled = () => {
        if (--run.waiting === 0 && run.ended) put(finished, run);
      };
      apply(then, promiseOf(promise), [settled, (error) => {
        logLine("error", ["waitUntil:", error]);
        settled();
      }]);
    },
  };
}

function invokeClassic(handler, input) {
  const run = current;
  let calls = 0;
  const callback = (error, result) => {
    if (++calls > 1) {
      if (calls === 2) logLine("warn", ["callback was called again; only the first call counts"]);
      return;
    }
    if (error !== undefined && error !== null && error !== false) end(run, false, error);
    else end(run, true, result);
  };
  const returned = handler(input, callback);
  if (returned instanceof PromiseOf) apply(then, returned, [undefined, (error) => end(run, false, error)]);
}

// What a version may reach, by name. Each run has its own object, so that a call is the run's own
// even when its code goes on in another run's turn (two that wait for one promise).
function envOf(run) {
  const env = { FN: functionsOf(run), DEVICES: devicesOf(run), KV: keyValuesOf(run) };
  const { variables, secrets, connections } = bindings;
  for (const name in variables) if (has(variables, name)) own(env, name, variables[name]);
  for (const name in secrets) if (has(secrets, name)) own(env, name, secrets[name]);
  for (const name in connections) if (has(connections, name)) own(env, name, connectionOf(run, name, connections[name]));
  return freeze(env);
}
const has = Function.prototype.call.bind(Object.prototype.hasOwnProperty);

// A method for each action; each gives the delivery's id.
function connectionOf(run, connection, { kind, actions }) {
  const methods = {};
  own(methods, "kind", kind);
  for (let i = 0; i < actions.length; i++) {
    const action = actions[i];
    own(methods, action, (message) => ask(run, "connection.send", { __proto__: null, connection, action, message }));
  }
  return freeze(methods);
}

// Not by assignment: another run may have put a setter on Object.prototype.
function own(object, name, value) {
  defineProperty(object, name, { __proto__: null, value, enumerable: true, configurable: true });
}

function functionsOf(run) {
  return { call: (name, payload = null, options) => ask(run, "function.call", { function: name, payload, ...options }) };
}

function devicesOf(run) {
  return {
    values: (device, key, options) => ask(run, "devices.values", { device, key, ...options }),
    write: (device, values) => ask(run, "devices.write", { device, values: isArray(values) ? values : values?.values }),
    list: () => ask(run, "devices.list", {}),
  };
}

function keyValuesOf(run) {
  return {
    get: (key, options) => ask(run, "kv.get", { key, namespace: options?.namespace }),
    put: (key, value, options) => ask(run, "kv.put", { key, value, namespace: options?.namespace, ttl_seconds: options?.ttlSeconds }),
    delete: (key, options) => ask(run, "kv.delete", { key, namespace: options?.namespace }),
    list: (options) => ask(run, "kv.list", { ...options }),
  };
}
