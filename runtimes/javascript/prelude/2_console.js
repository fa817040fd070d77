// console: every line belongs to the run that is current, and to the shared page until it is out.

function describe(value) {
  if (typeof value === "string") return value;
  if (value === undefined) return "undefined";
  if (typeof value === "bigint" || typeof value === "symbol" || typeof value === "function") return apply(toText, value, []);
  if (value instanceof Error) return value.stack === undefined ? "" + value : "" + value.stack;
  try {
    const text = stringify(value);
    return text === undefined ? "" + value : text;
  } catch {
    return "[object that JSON cannot show]";
  }
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
  const room = run.logBytes - run.logUnits;
  if (run.logged >= run.logLines || room <= 0) {
    run.dropped++;
    return;
  }
  if (text.length > room) text = sliceText(text, 0, room) + "… [line cut: log limit]";
  run.logged++;
  run.logUnits += text.length + 1;
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
globalThis.console = consoleObject;
