// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { const forever = (function* () { for (;;) yield; })(); for (const _ of forever); }
