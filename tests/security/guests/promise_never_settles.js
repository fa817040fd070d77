// expect: timed_out wall_ms limits=wall_ms=500
export default () => new Promise(() => {});
