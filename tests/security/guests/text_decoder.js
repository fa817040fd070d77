// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { new TextDecoder().decode(new Uint8Array(4e6).fill(0xff)); }
