// fetch and what it needs: Headers, Request, Response, URL, URLSearchParams for http(s).

class Headers {
  #map = new Map(); // lower-case name -> value
  #cookies = []; // Set-Cookie: the one header whose values cannot be joined with commas
  constructor(init) {
    if (init === undefined || init === null) return;
    if (init instanceof Headers || isArray(init)) for (const [name, value] of init) this.append(name, value);
    else for (const name of keysOf(init)) this.append(name, init[name]);
  }
  append(name, value) {
    const key = headerName(name);
    if (key === "set-cookie") return void this.#cookies.push(headerValue(value));
    const known = this.#map.get(key);
    this.#map.set(key, known === undefined ? headerValue(value) : known + ", " + headerValue(value));
  }
  set(name, value) {
    this.delete(name);
    this.append(name, value);
  }
  get(name) {
    const key = headerName(name);
    if (key === "set-cookie") return this.#cookies.length === 0 ? null : this.#cookies.join(", ");
    return this.#map.get(key) ?? null;
  }
  getSetCookie() { return [...this.#cookies]; }
  has(name) { return this.get(name) !== null; }
  delete(name) {
    const key = headerName(name);
    if (key === "set-cookie") this.#cookies = [];
    else this.#map.delete(key);
  }
  forEach(work, self) { for (const [name, value] of this) work.call(self, value, name, this); }
  *entries() {
    const pairs = [...this.#map, ...this.#cookies.map((value) => ["set-cookie", value])];
    yield* pairs.sort((a, b) => (a[0] < b[0] ? -1 : a[0] > b[0] ? 1 : 0));
  }
  *keys() { for (const [name] of this.entries()) yield name; }
  *values() { for (const [, value] of this.entries()) yield value; }
  [Symbol.iterator]() { return this.entries(); }
}

function headerName(name) {
  const text = String(name).toLowerCase();
  if (!/^[!#$%&'*+\-.^_`|~0-9a-z]+$/.test(text)) throw new TypeError(`${stringify(name)} is not a header name`);
  return text;
}

function headerValue(value) {
  const text = String(value).trim();
  if (/[\0\r\n]/.test(text)) throw new TypeError("a header value cannot hold line breaks");
  return text;
}

class Body {
  #bytes; // Uint8Array when the body is not text
  #text;
  #used = false;
  constructor(body) {
    // Copied: what the author does to the array later does not change the body.
    if (ArrayBuffer.isView(body)) this.#bytes = new Uint8Array(body.buffer, body.byteOffset, body.byteLength).slice();
    else if (body instanceof ArrayBuffer) this.#bytes = new Uint8Array(body).slice();
    else this.#text = body === undefined || body === null ? null : body instanceof URLSearchParams ? body.toString() : String(body);
  }
  get bodyUsed() { return this.#used; }
  #take() {
    if (this.#used) throw new TypeError("the body has been read already");
    this.#used = true;
  }
  async text() {
    this.#take();
    return this.#bytes === undefined ? this.#text ?? "" : decodeUtf8(this.#bytes);
  }
  async json() { return parse(await this.text()); }
  async bytes() {
    this.#take();
    return this.#bytes ?? encodeUtf8(this.#text ?? "");
  }
  async arrayBuffer() { return (await this.bytes()).buffer; }
  static wire(body) {
    // What crosses to the engine: text as it is, anything else as base64.
    if (body.#bytes !== undefined) return { body: body.#bytes.toBase64(), body_base64: true };
    return { body: body.#text, body_base64: false };
  }
}

class Request extends Body {
  constructor(input, init = {}) {
    const from = input instanceof Request ? input : null;
    const wire = from === null ? {} : Body.wire(from);
    super(init.body ?? (wire.body_base64 ? Uint8Array.fromBase64(wire.body) : wire.body));
    this.url = from === null ? new URL(input).href : from.url;
    this.method = String(init.method ?? from?.method ?? "GET").toUpperCase();
    this.headers = new Headers(init.headers ?? from?.headers);
    this.redirect = init.redirect ?? from?.redirect ?? "follow";
    if ((this.method === "GET" || this.method === "HEAD") && init.body != null) throw new TypeError(`a ${this.method} request cannot have a body`);
  }
}

const BODYLESS = [204, 205, 304]; // HTTP: an answer with such a status has no body

class Response extends Body {
  constructor(body, init = {}) {
    super(body);
    const status = init.status ?? 200;
    if (!(status >= 200 && status <= 599)) throw new RangeError(`${status} is not a status from 200 to 599`);
    this.status = Math.floor(status);
    if (body !== undefined && body !== null && BODYLESS.includes(this.status)) throw new TypeError(`a response with status ${this.status} cannot have a body`);
    this.statusText = init.statusText ?? "";
    this.headers = new Headers(init.headers);
    this.ok = this.status >= 200 && this.status <= 299;
    this.redirected = init.redirected ?? false;
    this.url = init.url ?? "";
    if (body instanceof URLSearchParams && !this.headers.has("content-type")) this.headers.set("content-type", "application/x-www-form-urlencoded;charset=UTF-8");
    if (typeof body === "string" && !this.headers.has("content-type")) this.headers.set("content-type", "text/plain;charset=UTF-8");
  }
  static json(value, init = {}) {
    const response = new Response(stringify(value), { ...init, headers: undefined });
    response.headers = new Headers(init.headers);
    if (!response.headers.has("content-type")) response.headers.set("content-type", "application/json");
    return response;
  }
  static redirect(url, status = 302) { return new Response(null, { status, headers: { location: String(url) } }); }
}

async function fetch(input, init = {}) {
  const request = new Request(input, init);
  if (init.body instanceof URLSearchParams && !request.headers.has("content-type")) request.headers.set("content-type", "application/x-www-form-urlencoded;charset=UTF-8");
  const answer = await ask(current, "fetch", {
    url: request.url, method: request.method, headers: [...request.headers], redirect: request.redirect, ...Body.wire(request),
  });
  const bytes = answer.body_base64 ? Uint8Array.fromBase64(answer.body) : answer.body;
  const body = BODYLESS.includes(answer.status) ? null : bytes;
  const response = new Response(body, { status: answer.status, statusText: answer.status_text, redirected: answer.redirected, url: answer.url });
  response.headers = new Headers(answer.headers);
  return response;
}

class URLSearchParams {
  #pairs = [];
  constructor(init = "") {
    if (typeof init === "string") {
      for (const part of init.replace(/^\?/, "").split("&")) {
        if (part === "") continue;
        const at = part.indexOf("=");
        const name = at < 0 ? part : part.slice(0, at);
        this.#pairs.push([formDecode(name), formDecode(at < 0 ? "" : part.slice(at + 1))]);
      }
    } else if (init !== null && typeof init[Symbol.iterator] === "function") {
      for (const [name, value] of init) this.append(name, value);
    } else {
      for (const name of keysOf(init)) this.append(name, init[name]);
    }
  }
  append(name, value) { this.#pairs.push([String(name), String(value)]); }
  delete(name) { this.#pairs = this.#pairs.filter((pair) => pair[0] !== name); }
  get(name) { return this.#pairs.find((pair) => pair[0] === name)?.[1] ?? null; }
  getAll(name) { return this.#pairs.filter((pair) => pair[0] === name).map((pair) => pair[1]); }
  has(name) { return this.#pairs.some((pair) => pair[0] === name); }
  set(name, value) { this.delete(name); this.append(name, value); }
  get size() { return this.#pairs.length; }
  *entries() { for (const [name, value] of this.#pairs) yield [name, value]; }
  *keys() { for (const [name] of this.#pairs) yield name; }
  *values() { for (const [, value] of this.#pairs) yield value; }
  forEach(work, self) { for (const [name, value] of this) work.call(self, value, name, this); }
  [Symbol.iterator]() { return this.entries(); }
  toString() { return this.#pairs.map(([name, value]) => formEncode(name) + "=" + formEncode(value)).join("&"); }
}

function formDecode(text) {
  try {
    return decodeURIComponent(text.replaceAll("+", " "));
  } catch {
    return text; // a lone % stays as it is
  }
}

function formEncode(text) {
  return encodeURIComponent(text).replaceAll("%20", "+").replace(/[!'()~]/g, (c) => "%" + c.charCodeAt(0).toString(16).toUpperCase());
}

const DEFAULT_PORTS = { "http:": "80", "https:": "443" };
class URL {
  constructor(input, base) {
    let text = String(input).trim();
    if (!/^[a-z][a-z0-9+.-]*:/i.test(text)) {
      if (base === undefined) throw new TypeError(`${stringify(text)} is not an absolute URL`);
      const from = new URL(base);
      if (text.startsWith("//")) text = from.protocol + text;
      else if (text.startsWith("/")) text = from.origin + text;
      else if (text.startsWith("?")) text = from.origin + from.pathname + text;
      else if (text.startsWith("#")) text = from.origin + from.pathname + from.search + text;
      else text = from.origin + from.pathname.slice(0, from.pathname.lastIndexOf("/") + 1) + text;
    }
    const match = /^(https?:)[/\\]{2}(?:([^@/?#\\]*)@)?(\[[0-9a-f:.]+\]|[^:/?#\\\s]+)(?::(\d{0,5}))?([^?#]*)(\?[^#]*)?(#.*)?$/i.exec(text);
    if (match === null) throw new TypeError(`${stringify(text)} is not an http(s) URL`);
    this.protocol = match[1].toLowerCase();
    const [username = "", password = ""] = (match[2] ?? "").split(":");
    this.username = username;
    this.password = password;
    this.hostname = match[3].toLowerCase();
    this.port = match[4] === undefined || match[4] === DEFAULT_PORTS[this.protocol] ? "" : match[4];
    this.pathname = withoutDots(escapeUrl(match[5] || "/"));
    this.hash = match[7] === undefined || match[7] === "#" ? "" : escapeUrl(match[7]);
    this.searchParams = new URLSearchParams(match[6] ?? "");
    this.search = match[6] === undefined || match[6] === "?" ? "" : escapeUrl(match[6]);
  }
  get host() { return this.hostname + (this.port === "" ? "" : ":" + this.port); }
  get origin() { return this.protocol + "//" + this.host; }
  get href() {
    const auth = this.username === "" ? "" : this.username + (this.password === "" ? "" : ":" + this.password) + "@";
    return this.protocol + "//" + auth + this.host + this.pathname + this.search + this.hash;
  }
  toString() { return this.href; }
  toJSON() { return this.href; }
  static canParse(input, base) {
    try {
      return new URL(input, base) !== null;
    } catch {
      return false;
    }
  }
}

function escapeUrl(text) {
  return text.replaceAll("\\", "/").replace(/[\s"<>`{}]|[^\x00-\x7f]+/g, (part) => encodeURIComponent(part));
}

function withoutDots(path) {
  const kept = [];
  const parts = path.split("/").slice(1);
  parts.forEach((part, at) => {
    const last = at === parts.length - 1;
    if (part === "..") {
      kept.pop();
      if (last) kept.push("");
    } else if (part !== ".") kept.push(part);
    else if (last) kept.push("");
  });
  return "/" + kept.join("/");
}

function encodeUtf8(text) {
  const escaped = encodeURIComponent(text.toWellFormed());
  const bytes = [];
  for (let i = 0; i < escaped.length; i++) {
    if (escaped[i] === "%") {
      bytes.push(parseInt(escaped.slice(i + 1, i + 3), 16));
      i += 2;
    } else bytes.push(escaped.charCodeAt(i));
  }
  return new Uint8Array(bytes);
}

function decodeUtf8(bytes) {
  let escaped = "";
  for (const byte of bytes) escaped += "%" + (byte < 16 ? "0" : "") + byte.toString(16);
  try {
    return decodeURIComponent(escaped);
  } catch {
    throw new TypeError("the body is not UTF-8 text; read it with bytes() or arrayBuffer()");
  }
}

class TextEncoder {
  get encoding() { return "utf-8"; }
  encode(text = "") { return encodeUtf8(String(text)); }
}

class TextDecoder {
  #fatal;
  constructor(label = "utf-8", options = {}) {
    if (!/^(utf-?8|unicode-1-1-utf-8)$/i.test(String(label).trim())) throw new RangeError(`TextDecoder knows utf-8 only, not ${label}`);
    this.#fatal = Boolean(options.fatal);
  }
  get encoding() { return "utf-8"; }
  get fatal() { return this.#fatal; }
  decode(input = new Uint8Array()) {
    const bytes = input instanceof ArrayBuffer ? new Uint8Array(input) : new Uint8Array(input.buffer, input.byteOffset, input.byteLength);
    try {
      return decodeUtf8(bytes).replace(/^\ufeff/, "");
    } catch (error) {
      if (this.#fatal) throw error;
      return decodeUtf8(repairedUtf8(bytes)).replace(/^\ufeff/, "");
    }
  }
}

// Every byte that is no part of a character becomes U+FFFD.
function repairedUtf8(bytes) {
  const good = [];
  for (let i = 0; i < bytes.length; ) {
    const lead = bytes[i];
    const length = lead < 0x80 ? 1 : lead >= 0xc2 && lead < 0xe0 ? 2 : lead >= 0xe0 && lead < 0xf0 ? 3 : lead >= 0xf0 && lead < 0xf5 ? 4 : 0;
    const part = bytes.subarray(i, i + length);
    let fits = length > 0 && part.length === length;
    if (fits && length > 1) {
      try {
        decodeUtf8(part);
      } catch {
        fits = false;
      }
    }
    if (fits) good.push(...part);
    else good.push(0xef, 0xbf, 0xbd);
    i += fits ? length : 1;
  }
  return new Uint8Array(good);
}

function btoa(text) {
  const bytes = new Uint8Array(String(text).length);
  for (let i = 0; i < bytes.length; i++) {
    const unit = String(text).charCodeAt(i);
    if (unit > 255) throw new RangeError("btoa takes characters up to U+00FF");
    bytes[i] = unit;
  }
  return bytes.toBase64();
}

function atob(text) {
  let decoded = "";
  for (const byte of Uint8Array.fromBase64(String(text))) decoded += String.fromCharCode(byte);
  return decoded;
}

for (const [name, value] of [["TextEncoder", TextEncoder], ["TextDecoder", TextDecoder], ["atob", atob], ["btoa", btoa], ["Headers", Headers], ["Request", Request], ["Response", Response], ["URL", URL], ["URLSearchParams", URLSearchParams], ["fetch", fetch]]) {
  defineProperty(globalThis, name, { value, writable: true, configurable: true });
}
