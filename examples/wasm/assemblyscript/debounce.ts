// One message when a device becomes too hot and one when it is cool again, however often its
// readings cross the line: the alarm goes on at ON_AT and off only at OFF_AT, which is lower.
//
// Deploy it on writes of "temperature", with a connection ALERTS and, if 80 and 75 do not fit, the
// variables ON_AT and OFF_AT. The alarm's state is what is stored of the resource "too_hot", not
// what a run remembers. Messages and writes of a run are kept together or not at all. Runs of two
// writes that overlap may both find the old state, and then both say so.
import { Json, Level, call, input, log, quote, result } from "./cloudcode";
export { alloc } from "./cloudcode";

const KEY = "temperature";
const STATE_KEY = "too_hot";
const CONNECTION = "ALERTS";

export function handle(at: usize, length: usize): u64 {
  const event = input(at, length);
  const env = call("env", "{}");
  const onAt = setting(env, "ON_AT", 80);
  const offAt = setting(env, "OFF_AT", 75);
  const device = event.member("deviceId");

  const before = isOn(device);
  let on = before;
  let cause = NaN;
  const values = event.member("data").member("values").items();
  for (let i = 0; i < values.length; i++) {
    if (values[i].member("key").string() != KEY) continue;
    const value = values[i].member("value").number();
    const next = value >= onAt ? true : value <= offAt ? false : on; // NaN, no number: as it was
    if (next != on) cause = value;
    on = next;
  }

  if (on != before) {
    const text = `${event.member("deviceType").string()} ${on ? "is too hot" : "is cool again"}: ${shown(cause)}`;
    log(on ? Level.Warn : Level.Info, text);
    call("devices.write", `{"device":${device},"values":[{"key":${quote(STATE_KEY)},"value":${on}}]}`);
    call("connection.send", `{"connection":${quote(CONNECTION)},"message":{"text":${quote(text)}}}`);
  }
  return result(`{"on":${on},"changed":${on != before}}`);
}

function isOn(device: Json): bool {
  const newest = call("devices.values", `{"device":${device},"key":${quote(STATE_KEY)},"limit":1}`).items();
  return newest.length > 0 && newest[0].member("value").isTrue;
}

function setting(env: Json, name: string, otherwise: f64): f64 {
  const text = env.member(name).string(); // variables are text
  return text == "" ? otherwise : parseFloat(text);
}

function shown(value: f64): string {
  return value == Math.floor(value) ? (<i64>value).toString() : value.toString(); // 81, not 81.0
}
