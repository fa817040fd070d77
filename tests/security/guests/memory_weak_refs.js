// expect: memory_exceeded memory_mb limits=cpu_ms=2000,memory_mb=16
// What has been looked at through a WeakRef lives until the turn ends.
function main() { for (;;) new WeakRef({}).deref(); }
