// expect: host_calls_exceeded host_calls
function main() { for (let i = 0; i < 5000; i++) setTimeout(() => {}, 1); }
