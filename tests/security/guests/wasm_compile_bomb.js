// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
// A valid function of two million instructions: i32.const 0, drop.
function main() {
  const leb = (n) => { const bytes = []; do { bytes.push((n & 127) | (n > 127 ? 128 : 0)); n >>>= 7; } while (n); return bytes; };
  const body = new Uint8Array(3e6 + 2);
  for (let i = 1; i <= 3e6; i += 3) { body[i] = 65; body[i + 2] = 26; }
  body[3e6 + 1] = 11;
  const code = [1, ...leb(body.length)];
  const head = [0, 97, 115, 109, 1, 0, 0, 0, 1, 4, 1, 96, 0, 0, 3, 2, 1, 0, 10, ...leb(code.length + body.length), ...code];
  const bytes = new Uint8Array(head.length + body.length);
  bytes.set(head);
  bytes.set(body, head.length);
  for (;;) new WebAssembly.Module(bytes);
}
