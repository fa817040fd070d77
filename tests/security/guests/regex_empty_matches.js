// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
function main() {
  const endless = /(?:)/g;
  endless.exec = function () { this.lastIndex = 0; return [""]; };
  "x".replace(endless, "");
}
