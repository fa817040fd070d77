// expect: succeeded
// Who calls the handler is strict code: neither `caller` nor `arguments` nor a frame gives it away.
function main(p, cb) {
  const found = [];
  for (const look of [() => main.caller, () => cb.caller, () => cb.arguments, () => arguments.callee.caller]) {
    try { if (look()) found.push(String(look)); } catch {}
  }
  Error.prepareStackTrace = (_, frames) => frames;
  for (const frame of new Error().stack) {
    if (!String(frame).includes("cloudcode:")) continue;
    if (frame.getFunction() !== undefined || frame.getThis() !== undefined) found.push(String(frame));
  }
  if (found.length > 0) throw new Error(found.join());
  cb(null, 1);
}
