// expect: refused
import fs from "fs";
export default () => fs.readFileSync("/etc/passwd");
