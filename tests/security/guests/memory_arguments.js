// expect: failed
function main() { return Math.max(...new Array(5e6)); }
