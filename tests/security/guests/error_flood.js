// expect: failed
function main() { const error = new Error("x".repeat(5e6)); error.name = "y".repeat(5e6); error.stack = "z".repeat(5e6); throw error; }
