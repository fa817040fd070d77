// expect: failed
function main() { return "".padStart(2 ** 30, "ab"); }
