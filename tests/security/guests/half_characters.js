// expect: succeeded
function main(p, cb) {
  const half = "\ud83d";
  console.log(half, "\u0000\u001b[2J\r\n\u202e", { [half]: half });
  cb(null, { [half]: [half, "\udc00\ud800", "\\ud800"], __proto__: { hidden: 1 } });
}
