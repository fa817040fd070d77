// expect: timed_out wall_ms limits=wall_ms=300,cpu_ms=50
// memory.atomic.wait32 on a shared memory: sleeps on the isolate's only thread, and uses no CPU.
const CODE = [
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 127, 2, 9, 1, 1, 101, 1, 109, 2, 3, 1, 1, 3, 2, 1, 0, 7, 5, 1, 1, 102, 0, 0,
  10, 14, 1, 12, 0, 65, 0, 65, 0, 66, 127, 254, 1, 2, 0, 11,
];
function main(p, cb) {
  const memory = new WebAssembly.Memory({ initial: 1, maximum: 1, shared: true });
  const { exports } = new WebAssembly.Instance(new WebAssembly.Module(new Uint8Array(CODE)), { e: { m: memory } });
  cb(null, exports.f());
}
