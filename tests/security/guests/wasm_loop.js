// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
// (func (export "f") (loop (br 0)))
const CODE = [0, 97, 115, 109, 1, 0, 0, 0, 1, 4, 1, 96, 0, 0, 3, 2, 1, 0, 7, 5, 1, 1, 102, 0, 0, 10, 9, 1, 7, 0, 3, 64, 12, 0, 11, 11];
function main() { new WebAssembly.Instance(new WebAssembly.Module(new Uint8Array(CODE))).exports.f(); }
