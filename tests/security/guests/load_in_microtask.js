// expect: cpu_exceeded cpu_ms
// The file itself is evaluated at once; what it left behind never ends.
const again = () => { Promise.resolve().then(again); };
again();
export default () => 1;
