// expect: refused
for (;;);
function main() {}
