// expect: cpu_exceeded cpu_ms
function main() { throw { get message() { for (;;); } }; }
