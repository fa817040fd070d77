// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() { return "\u1e9b\u0323".repeat(2e6).normalize("NFKD").normalize("NFC").length; }
