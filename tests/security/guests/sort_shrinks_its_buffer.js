// expect: succeeded
function main(p, cb) {
  const buffer = new ArrayBuffer(8000, { maxByteLength: 8000 });
  const numbers = new Float64Array(buffer);
  numbers.sort((a, b) => { buffer.resize(8); return b - a; });
  cb(null, numbers.length);
}
