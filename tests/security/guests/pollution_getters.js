// expect: succeeded
// Every name that the prelude reads or writes is a trap on Object.prototype.
const NAMES = `id handler now began seed cpuMs outputBytes logLines logBytes context random calls callCount timers timerCount waiting log
  logged logUnits dropped ended ok value resolve reject name message code stack then get set enumerable configurable writable
  url method headers redirect body body_base64 status payload function device key values namespace options limit ttl_seconds
  delaySeconds main imports exports variables secrets connections 0 1 2 3 4 5 6 7 8 9 10`.split(/\s+/);
for (const name of NAMES) {
  const set = () => { throw new Error("caught " + name); };
  Object.defineProperty(Object.prototype, name, { __proto__: null, configurable: true, get: () => undefined, set });
}
function main(p, cb) { console.log("still"); setTimeout(() => cb(null, [1, "two"]), 1); }
