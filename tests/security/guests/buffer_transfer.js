// expect: failed limits=cpu_ms=2000
function main() { let buffer = new ArrayBuffer(2 ** 20); for (;;) buffer = buffer.transfer(buffer.byteLength * 2); }
