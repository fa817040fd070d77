// expect: cpu_exceeded cpu_ms
export default function () { for (;;) setTimeout(() => {}, 1); }
