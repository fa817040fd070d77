// expect: host_calls_exceeded host_calls
// Overflows in the middle of the prelude's own code, at every depth there is.
function main() { const again = () => { console.log("x"); setTimeout(() => {}, 1); again(); again(); }; again(); }
