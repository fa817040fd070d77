// expect: failed
function main() { const buffer = new ArrayBuffer(8, { maxByteLength: 2 ** 32 }); for (;;) buffer.resize(buffer.byteLength * 2); }
