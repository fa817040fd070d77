// expect: succeeded
// Callbacks of timers, promises and the engine are called on nothing.
function main(p, cb) {
  const found = [];
  const look = function () { "use strict"; if (this !== undefined) found.push(String(this)); };
  queueMicrotask(look);
  setTimeout(look, 1);
  thethingsAPI.thingRead("nobody", "x", look);
  setTimeout(() => (found.length > 0 ? cb(found) : cb(null, 1)), 50);
}
