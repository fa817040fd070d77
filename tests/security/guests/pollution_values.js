// expect: succeeded
for (const name of ["run", "ended", "waiting", "ok", "redirect", "now", "dropped", "toString", "length"]) Object.prototype[name] = 7;
Array.prototype.toJSON = undefined;
export default async function (event, env) {
  if ((await env.KV.get("missing")) !== null) throw new Error("an answer that is none");
  return "unharmed";
}
