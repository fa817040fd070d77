// expect: failed
export default () => (0, eval)("import('fs')");
