// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { for (;;) crypto.getRandomValues(new Uint8Array(65536)); }
