// expect: host_calls_exceeded host_calls limits=cpu_ms=2000
function main() { const again = () => { for (let i = 0; i < 10; i++) setTimeout(again, 0); }; again(); }
