// expect: failed
function main() { const again = () => again() + 1; again(); }
