// expect: failed
// A handler's own promise is asked for its constructor, as the language says.
Object.defineProperty(Promise.prototype, "constructor", { get() { throw new Error("constructor"); } });
export default async () => 1;
