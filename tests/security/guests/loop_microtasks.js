// expect: cpu_exceeded cpu_ms
export default function () {
  const again = () => { Promise.resolve().then(again); };
  again();
  return new Promise(() => {});
}
