// expect: succeeded
export default () => ({ then(resolve, reject) { resolve(1); reject(new Error("no")); resolve({ a: 2 }); } });
