// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { const long = "\u00e4".repeat(1e6); for (;;) long.localeCompare(long + "b", "sv", { sensitivity: "base" }); }
