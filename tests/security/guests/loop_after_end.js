// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
// Goes on in microtasks when the callback has had its answer already.
function main(p, cb) {
  const again = () => { Promise.resolve().then(again); };
  cb(null, 1);
  again();
}
