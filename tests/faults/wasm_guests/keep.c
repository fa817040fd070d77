// What `seen` and `note` of load.py do, as a module: writes an item beside where it came from, and
// sends it on. Between the two it waits, so that a run is often under way when its cell is killed.
#include "cloudcode.h"

#define WAIT_MS 5

static void answered(json_output *ask) {
  json value;
  if (!engine_answer(ask, &value)) engine_fail(value);
}

static void keep(json device, const char *key, json item) {
  json_output ask = engine_ask("devices.write");
  json_name(&ask, "device");
  json_copy(&ask, device);
  json_name(&ask, "values");
  json_open(&ask, '[');
  json_open(&ask, '{');
  json_name(&ask, "key");
  json_put_text(&ask, key);
  json_name(&ask, "value");
  json_copy(&ask, item);
  json_close(&ask, '}');
  json_close(&ask, ']');
  answered(&ask);

  ask = engine_ask("timer");
  json_name(&ask, "ms");
  json_put_number(&ask, WAIT_MS);
  answered(&ask);

  ask = engine_ask("connection.send");
  json_name(&ask, "connection");
  json_put_text(&ask, "SLACK");
  json_name(&ask, "message");
  json_open(&ask, '{');
  json_name(&ask, "text");
  json_copy(&ask, item);
  json_close(&ask, '}');
  answered(&ask);
}

static void take(json input) {
  json first;
  json_cursor values = json_items(json_member(json_member(input, "data"), "values"));
  if (json_next(&values, &first)) keep(json_member(input, "deviceId"), "seen", json_member(first, "value"));
  else keep(json_member(input, "device"), "noted", json_member(input, "item"));
}

#ifdef COMMAND
int main(void) {
  static char text[65536];
  take(json_of(text, fread(text, 1, sizeof text, stdin)));
}
#else
__attribute__((export_name("handle")))
uint64_t handle(const char *text, size_t length) {
  take(json_of(text, length));
  return engine_result(JSON_ABSENT);
}
#endif
