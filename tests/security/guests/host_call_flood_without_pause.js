// expect: host_calls_exceeded host_calls
export default function () { for (;;) setTimeout(() => {}, 1); }
