// expect: failed
export default () => Promise.reject();
