// expect: succeeded
// `env` of a run that has ended asks for nobody.
let before;
export default async function (event, env) {
  const old = before ?? (before = env);
  await old.KV.put("k", 1);
  return 1;
}
