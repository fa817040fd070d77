// expect: succeeded
import * as self from "./main.js";
export default () => typeof self.default;
