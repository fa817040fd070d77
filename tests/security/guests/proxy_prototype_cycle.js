// expect: failed
function main() { const target = {}; const p = new Proxy(target, {}); Object.setPrototypeOf(target, p); return p.missing; }
