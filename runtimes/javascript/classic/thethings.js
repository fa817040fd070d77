// The globals of classic thethings.iO scripts, on top of the same host calls as `env`.
// Callbacks come once, as (error, result); an error has message, stack and a useful toString.

function withCallback(operation, args, callback, convert) {
  const run = current;
  let called = false;
  const answer = (error, value) => {
    if (called || typeof callback !== "function") return;
    called = true;
    callback(error, value); // what it throws ends the run: `receive` guards it
  };
  hostCall(
    run,
    operation,
    args,
    (value) => answer(null, convert === undefined ? value : convert(value)),
    (error) => {
      if (typeof callback !== "function") logLine("error", [`${operation}: ${error.message}`]);
      if (runs[run.id] === run) answer(error);
    },
  );
}

globalThis.thethingsAPI = {
  thingRead(device, key, options, callback) {
    if (typeof options === "function") [options, callback] = [undefined, options];
    const { limit, startDate, endDate, lib } = options ?? {};
    const most = lib === "panel" ? 1000 : 100;
    const count = limit === undefined ? 1 : Math.max(1, Math.min(most, Math.floor(Number(limit)) || 1));
    withCallback("devices.values", { device, key, limit: count, start: startDate, end: endDate }, callback);
  },
  thingWrite(device, body, options, callback) {
    if (typeof options === "function") callback = options;
    const values = body !== null && typeof body === "object" ? body.values : body;
    withCallback("devices.write", { device, values }, callback, () => ({ status: "created", message: "created" }));
  },
  getProductThings(callback) {
    withCallback("devices.list", {}, callback, (devices) => devices.map(thingOf));
  },
};

function thingOf(device) {
  return {
    _id: device.id, thingToken: device.token, description: { name: device.name }, createdAt: device.created_at,
    lastSeen: device.last_seen, lastRead: device.last_seen, lastWrite: device.last_seen, users: [],
    tags: device.tags.map((name) => ({ _id: name, name })), billType: "",
  };
}

globalThis.httpRequest = function httpRequest(options, body, callback) {
  if (typeof body === "function") [body, callback] = [undefined, body];
  const { host, path = "/", method = "GET", secure = false, port, headers } = options;
  const pairs = keysOf(headers ?? {}).map((name) => [name, String(headers[name])]);
  const sent = body === undefined || body === null ? null : stringify(body); // always JSON, strings too
  if (sent !== null && !pairs.some(([name]) => name.toLowerCase() === "content-type")) pairs.push(["content-type", "application/json"]);
  const url = `${secure ? "https" : "http"}://${host}${port === undefined || port === null ? "" : ":" + port}${path}`;
  withCallback("fetch", { url, method, headers: pairs, body: sent, body_base64: false, redirect: "follow" }, callback, (answer) => ({
    result: answer.body_base64 ? byteText(answer.body) : answer.body, statusCode: answer.status, headers: Object.fromEntries(answer.headers),
  }));
};

// A body that is no UTF-8 text: one character a byte, as `binary` strings have always been.
function byteText(base64) {
  let text = "";
  for (const byte of Uint8Array.fromBase64(base64)) text += String.fromCharCode(byte);
  return text;
}

globalThis.module = { exports: {} };
globalThis.exports = globalThis.module.exports;
