// expect: failed
// Calls itself what the engine calls its own endings.
function main() { throw { name: "memory_exceeded", message: "memory_mb", code: "cpu_exceeded", stack: "at cloudcode:prelude:1:1" }; }
