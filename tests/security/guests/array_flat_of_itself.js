// expect: failed
function main() { const all = []; all.push(all, all); all.flat(Infinity); }
