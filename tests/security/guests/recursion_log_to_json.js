// expect: succeeded
function main(p, cb) {
  const value = { toJSON() { console.log(value); return "x"; } };
  console.log(value);
  cb(null, 1);
}
