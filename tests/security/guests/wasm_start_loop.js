// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
// The same as a start function, asynchronously.
const CODE = [0, 97, 115, 109, 1, 0, 0, 0, 1, 4, 1, 96, 0, 0, 3, 2, 1, 0, 8, 1, 0, 10, 9, 1, 7, 0, 3, 64, 12, 0, 11, 11];
export default () => WebAssembly.instantiate(new Uint8Array(CODE)).then(() => 1);
