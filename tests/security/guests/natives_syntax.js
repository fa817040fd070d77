// expect: failed
function main() { return (0, eval)("%DebugPrint(1)"); }
