// expect: timed_out wall_ms limits=wall_ms=300,cpu_ms=50
export default (event, env, ctx) => { ctx.waitUntil(new Promise(() => {})); return 1; };
