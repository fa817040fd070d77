// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
const again = { then(resolve) { resolve(again); } };
export default () => again;
