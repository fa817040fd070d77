// expect: failed
function main() { const even = (n) => odd(n + 1), odd = (n) => even(n + 1) + 1; even(0); }
