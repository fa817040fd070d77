// expect: succeeded
for (let i = 0; i < 20000; i++) console.log("loading " + i + "y".repeat(2000));
export default () => 1;
