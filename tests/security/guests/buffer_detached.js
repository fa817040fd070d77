// expect: failed
function main() {
  const bytes = new Uint8Array(8);
  bytes.buffer.transfer();
  crypto.getRandomValues(bytes);
  new DataView(bytes.buffer).getInt8(0);
}
