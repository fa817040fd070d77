// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
// Each level that overflows tries again: two to the power of the stack's depth.
function main() { const again = () => { try { again(); } catch { again(); } }; again(); }
