// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
// The engine's refusal gets its stack where it was asked; that asks the guest.
export default function (event, env) {
  Error.prepareStackTrace = () => { for (;;); };
  return env.DEVICES.values("nobody", "x");
}
