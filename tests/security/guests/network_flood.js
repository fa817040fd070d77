// expect: host_calls_exceeded network_requests
export default async function () { await Promise.allSettled(Array.from({ length: 60 }, () => fetch("http://127.0.0.1:9/"))); }
