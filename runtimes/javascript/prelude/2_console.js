// console: every line belongs to the run that is current, and to the shared page until it is out.

function describe(value) {
  if (typeof value === "string") return value;
  if (value === undefined) return "undefined";
  if (typeof value === "number") return "" + value;
  if (typeof value === "bigint" || typeof value === "symbol" || typeof value === "function") return apply(toText, value, []);
  try {
    if (value instanceof Error) return authorsStack(value);
    if (value instanceof MapOf) return `Map(${value.size}) {${entriesText(value, (pair) => describe(pair[0]) + " => " + describe(pair[1]))}}`;
    if (value instanceof SetOf) return `Set(${value.size}) {${entriesText(value, describe)}}`;
    const text = stringify(value);
    return text === undefined ? "" + value : text;
  } catch {
    return "[object that JSON cannot show]";
  }
}
const MapOf = Map, SetOf = Set;

function entriesText(collection, show) {
  let text = "";
  for (const entry of collection) {
    text += (text === "" ? "" : ", ") + show(entry);
    if (text.length > 1000) return text + ", ...";
  }
  return text;
}

// An error as its author knows it: none of the prelude's frames.
function authorsStack(error) {
  const stack = error.stack === undefined ? "" + error : "" + error.stack;
  if (indexOf(stack, "cloudcode:") < 0) return stack;
  let kept = "", from = 0;
  while (from <= stack.length) {
    const next = indexOf(stack, "\n", from);
    const row = sliceText(stack, from, next < 0 ? stack.length : next);
    if (indexOf(row, "(cloudcode:") < 0 && indexOf(row, "at cloudcode:") < 0) kept += (from === 0 ? "" : "\n") + row;
    if (next < 0) break;
    from = next + 1;
  }
  return kept;
}

function toText() {
  "use strict";
  return typeof this === "bigint" ? `${this}n` : typeof this === "symbol" ? "Symbol()" : "[function]";
}

function logLine(level, values) {
  const run = current;
  let text = "";
  for (let i = 0; i < values.length; i++) {
    text += (i === 0 ? "" : " ") + describe(values[i]);
    if (run !== null && text.length > run.logBytes) break;
  }
  if (run === null) {
    if (loadLog.length < 100) put(loadLog, sliceText(text, 0, 1000));
    return;
  }
  text = wellFormed(text);
  const room = run.logBytes - run.logUnits;
  if (run.logged >= run.logLines || room <= 0) {
    run.dropped++;
    return;
  }
  if (text.length > room) text = wellFormed(sliceText(text, 0, room)) + "… [line cut: log limit]";
  run.logged++;
  run.logUnits += text.length + 1;
  if (run.log === NO_LOG) run.log = list();
  put(run.log, '["' + level + '",' + run.now + "," + stringify(text) + "]");
  remember(level, text);
}

// If the run is killed before its next message, the cell's main thread still finds the line here.
function remember(level, text) {
  let at = sharedMark[3];
  const line = level + " " + text + "\u0000";
  if (at + line.length > SHARED_LOG_UNITS) return;
  for (let i = 0; i < line.length; i++) sharedLog[at++] = charCodeAt(line, i);
  sharedMark[3] = at;
}

const consoleLevels = { log: "info", info: "info", debug: "debug", trace: "debug", warn: "warn", error: "error" };
const consoleObject = {};
for (const name of keysOf(consoleLevels)) {
  const level = consoleLevels[name];
  consoleObject[name] = (...values) => logLine(level, values);
}
consoleObject.dir = consoleObject.dirxml = consoleObject.table = consoleObject.group = consoleObject.groupCollapsed = consoleObject.log;
consoleObject.groupEnd = () => {};
consoleObject.assert = (holds, ...values) => {
  if (!holds) logLine("error", ["Assertion failed:", ...values]);
};
const counts = create(null), timers = create(null);
consoleObject.count = (label = "default") => logLine("info", [`${label}: ${(counts[label] = (counts[label] ?? 0) + 1)}`]);
consoleObject.countReset = (label = "default") => { delete counts[label]; };
consoleObject.time = (label = "default") => { timers[label] = nowMs(); };
consoleObject.timeLog = (label = "default") => logLine("info", [`${label}: ${nowMs() - (timers[label] ?? nowMs())} ms`]);
consoleObject.timeEnd = (label = "default") => {
  consoleObject.timeLog(label);
  delete timers[label];
};
globalThis.console = consoleObject;
