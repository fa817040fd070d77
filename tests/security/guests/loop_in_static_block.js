// expect: refused
class Sensor { static { for (;;); } }
export default () => new Sensor();
