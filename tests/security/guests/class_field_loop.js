// expect: cpu_exceeded cpu_ms limits=cpu_ms=50
class Sensor { value = (() => { for (;;); })(); }
export default () => new Sensor();
