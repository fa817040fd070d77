// The engine's host calls for functions of the core kind, in AssemblyScript, with the JSON they need.
// See ../README.md for the ABI.
//
//   asc debounce.ts -o debounce.wasm -O --debug --exportStart _initialize --use abort=cloudcode/abort
//
// JSON that comes in is not checked (the engine has); what is not there, or of another type, is an
// absent value or the default. A value is found by walking over what stands before it. Of two members with
// one name the first is taken. Lone halves of surrogate pairs leave as U+FFFD.

export enum Level {
  Debug,
  Info,
  Warn,
  Error,
}

@external("engine", "call")
declare function engineCall(at: usize, length: usize): u64;

@external("engine", "log")
declare function engineLog(level: Level, at: usize, length: usize): void;

// Gives the engine room to write to: for the event, and for the answer of each host call. What it
// wrote is copied into a string and freed, so an instance may be reused.
export function alloc(size: usize): usize {
  return heap.alloc(size);
}

function take(at: usize, length: usize): string {
  const text = String.UTF8.decodeUnsafe(at, length);
  heap.free(at);
  return text;
}

function bytesOf(text: string): ArrayBuffer {
  return String.UTF8.encode(text, false, String.UTF8.ErrorMode.REPLACE);
}

// The input of `handle`.
export function input(at: usize, length: usize): Json {
  return new Json(take(at, length));
}

let lastResult = new ArrayBuffer(0); // kept: the engine reads it after `handle` has returned

// What `handle` returns: JSON text.
export function result(json: string): u64 {
  lastResult = bytesOf(json);
  return (<u64>changetype<usize>(lastResult) << 32) | <u64>lastResult.byteLength;
}

export function log(level: Level, text: string): void {
  const bytes = bytesOf(text);
  engineLog(level, changetype<usize>(bytes), bytes.byteLength);
}

// Makes a host call and returns its value. A call that is refused ends the run as failed: nothing
// that it wrote or sent is kept. AssemblyScript cannot catch; use `attempt` to go on.
export function call(operation: string, args: string): Json {
  const answer = attempt(operation, args);
  if (!answer.member("ok").isTrue) throw new Error(answer.member("error").member("message").string());
  return answer.member("value");
}

// Makes a host call and returns {"ok": true, "value": ...} or {"ok": false, "error": {...}}.
export function attempt(operation: string, args: string): Json {
  const request = bytesOf(`{"operation":${quote(operation)},"arguments":${args}}`);
  const found = engineCall(changetype<usize>(request), request.byteLength);
  return new Json(take(<usize>(found >> 32), <usize>(found & 0xffff_ffff)));
}

// What `throw` and failed assertions come to (--use abort=...): a line in the log, then a trap.
export function abort(message: string | null, file: string | null, line: u32, column: u32): void {
  const what = message === null ? "aborted" : message;
  const where = file === null ? "" : ` (${file}:${line}:${column})`;
  log(Level.Error, what + where);
  unreachable();
}

// One JSON value, as its text; "" is an absent one.
export class Json {
  readonly text: string;

  constructor(text: string) {
    this.text = text.trim();
  }

  // For templates: JSON, also of what is absent.
  toString(): string {
    return this.text.length > 0 ? this.text : "null";
  }

  get isTrue(): bool {
    return this.text == "true";
  }

  get isNumber(): bool {
    const sign = this.first;
    return sign == 0x2d || (sign >= 0x30 && sign <= 0x39); // - or a digit
  }

  // The member of an object.
  member(name: string): Json {
    if (this.first != OBJECT) return ABSENT;
    let at = skipSpace(this.text, 1);
    while (at < this.text.length && this.text.charCodeAt(at) == QUOTE) {
      const nameEnd = skipValue(this.text, at);
      const valueAt = skipSpace(this.text, nameEnd) + 1; // behind the colon
      const end = skipValue(this.text, valueAt);
      if (unquote(this.text.substring(at, nameEnd)) == name) return new Json(this.text.substring(valueAt, end));
      at = skipSpace(this.text, skipSpace(this.text, end) + 1); // behind the comma
    }
    return ABSENT;
  }

  // The items of an array; none of anything else.
  items(): Json[] {
    const found: Json[] = [];
    if (this.first != ARRAY) return found;
    let at = skipSpace(this.text, 1);
    while (at < this.text.length && this.text.charCodeAt(at) != ARRAY_END) {
      const end = skipValue(this.text, at);
      found.push(new Json(this.text.substring(at, end)));
      at = skipSpace(this.text, skipSpace(this.text, end) + 1);
    }
    return found;
  }

  number(otherwise: f64 = NaN): f64 {
    return this.isNumber ? parseFloat(this.text) : otherwise;
  }

  string(otherwise: string = ""): string {
    return this.first == QUOTE ? unquote(this.text) : otherwise;
  }

  private get first(): i32 {
    return this.text.length > 0 ? this.text.charCodeAt(0) : 0;
  }
}

const QUOTE: i32 = 0x22; // "
const BACKSLASH: i32 = 0x5c;
const COMMA: i32 = 0x2c;
const OBJECT: i32 = 0x7b; // {
const OBJECT_END: i32 = 0x7d;
const ARRAY: i32 = 0x5b; // [
const ARRAY_END: i32 = 0x5d;
const ABSENT = new Json("");

function skipSpace(text: string, at: i32): i32 {
  while (at < text.length && text.charCodeAt(at) <= 0x20) at++;
  return at;
}

// Returns the index behind the value at `at`. No recursion: depth only counts brackets.
function skipValue(text: string, at: i32): i32 {
  let depth = 0;
  let inString = false;
  for (; at < text.length; at++) {
    const sign = text.charCodeAt(at);
    if (inString) {
      if (sign == BACKSLASH) at++;
      else if (sign == QUOTE) {
        inString = false;
        if (depth == 0) return at + 1;
      }
    } else if (sign == QUOTE) inString = true;
    else if (sign == OBJECT || sign == ARRAY) depth++;
    else if (sign == OBJECT_END || sign == ARRAY_END) {
      if (depth == 0) return at; // the end of what the value stands in
      if (--depth == 0) return at + 1;
    } else if (sign == COMMA && depth == 0) return at;
  }
  return text.length;
}

function unquote(json: string): string {
  const inside = json.substring(1, json.length - 1);
  let from = inside.indexOf("\\");
  if (from < 0) return inside;
  let text = "";
  let copied = 0;
  for (; from >= 0; from = inside.indexOf("\\", copied)) {
    text += inside.substring(copied, from);
    const escape = inside.charAt(from + 1);
    if (escape == "u") {
      text += String.fromCharCode(<i32>parseInt(inside.substring(from + 2, from + 6), 16));
      copied = from + 6;
    } else {
      const known = "bfnrt".indexOf(escape);
      text += known < 0 || escape == "" ? escape : "\b\f\n\r\t".charAt(known);
      copied = from + 2;
    }
  }
  return text + inside.substring(copied);
}

// Text as a JSON string.
export function quote(text: string): string {
  let json = '"';
  for (let i = 0; i < text.length; i++) {
    const sign = text.charCodeAt(i);
    if (sign == QUOTE || sign == BACKSLASH) json += "\\" + text.charAt(i);
    else if (sign < 0x20) json += "\\u" + sign.toString(16).padStart(4, "0");
    else json += text.charAt(i);
  }
  return json + '"';
}
