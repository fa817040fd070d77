// expect: failed
// Code that the collector would run between two runs, on nobody's account.
function main() { new FinalizationRegistry(() => { for (;;); }).register({}, 1); }
