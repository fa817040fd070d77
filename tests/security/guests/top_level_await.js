// expect: refused
await new Promise(() => {});
export default () => 1;
