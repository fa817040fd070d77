// expect: memory_exceeded memory_mb limits=cpu_ms=2000,memory_mb=16
export default async function () { const more = () => { queueMicrotask(more); queueMicrotask(more); }; more(); }
