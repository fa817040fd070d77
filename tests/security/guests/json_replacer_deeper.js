// expect: failed
function main() { JSON.stringify({}, () => ({ a: {} })); }
