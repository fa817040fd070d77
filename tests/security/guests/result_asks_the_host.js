// expect: succeeded
// The result is written when the run has ended: what its getters still ask for comes too late.
function ask() {
  thethingsAPI.thingRead("nobody", "x", () => {});
  setTimeout(() => { throw new Error("late"); }, 1);
  console.log("late");
  return 1;
}
function main(p, cb) { cb(null, { get x() { return ask(); } }); }
