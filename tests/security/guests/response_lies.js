// expect: failed
export default { async fetch() { return Object.create(Response.prototype, { status: { value: 200 }, headers: { value: [] } }); } };
