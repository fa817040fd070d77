// expect: failed limits=cpu_ms=2000
export default async function (event, env) {
  const values = [{ key: "x", value: "y".repeat(200000) }];
  await Promise.all(Array.from({ length: 80 }, () => env.DEVICES.write("nobody", values)));
}
