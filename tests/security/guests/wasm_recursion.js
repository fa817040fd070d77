// expect: failed
// (func (export "f") (call 0)): overflows the stack, which is JavaScript's.
const CODE = [0, 97, 115, 109, 1, 0, 0, 0, 1, 4, 1, 96, 0, 0, 3, 2, 1, 0, 7, 5, 1, 1, 102, 0, 0, 10, 6, 1, 4, 0, 16, 0, 11];
function main() { new WebAssembly.Instance(new WebAssembly.Module(new Uint8Array(CODE))).exports.f(); }
