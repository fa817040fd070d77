// expect: failed
function main() { require("child_process"); }
