// expect: failed
function main() { Response.prototype.text.call(Object.create(Response.prototype)).then(() => {}); Headers.prototype.get.call({}, "x"); }
