// Writes the mean of a device's newest temperatures beside each one that comes in.
//
// Deploy it on writes of "temperature": what it writes has another key, so it does not start itself.
// WINDOW, a variable of the function, says how many values count; 5 if it is not set.
//
// The values of a write are stored before its run begins, and the mean carries the newest one's
// time: runs of one device that overlap write the same mean twice at worst.
#include "cloudcode.h"

#define KEY "temperature"
#define KEY_MEAN "temperature_mean"
#define WINDOW_MAX 100

static int window(void) {
  json_output ask = engine_ask("env");
  json env;
  char text[16];
  if (!engine_answer(&ask, &env)) engine_fail(env);
  int asked = json_text(json_member(env, "WINDOW"), text, sizeof text) ? atoi(text) : 5;
  return asked < 1 ? 1 : asked > WINDOW_MAX ? WINDOW_MAX : asked;
}

static json newest_values(json device, int count) {
  json_output ask = engine_ask("devices.values");
  json_name(&ask, "device");
  json_copy(&ask, device);
  json_name(&ask, "key");
  json_put_text(&ask, KEY);
  json_name(&ask, "limit");
  json_put_number(&ask, count);
  json values;
  if (!engine_answer(&ask, &values)) engine_fail(values);
  return values;
}

static void write_mean(json device, double mean, json datetime) {
  json_output ask = engine_ask("devices.write");
  json_name(&ask, "device");
  json_copy(&ask, device);
  json_name(&ask, "values");
  json_open(&ask, '[');
  json_open(&ask, '{');
  json_name(&ask, "key");
  json_put_text(&ask, KEY_MEAN);
  json_name(&ask, "value");
  json_put_number(&ask, mean);
  json_name(&ask, "datetime");
  json_copy(&ask, datetime);
  json_close(&ask, '}');
  json_close(&ask, ']');
  json written;
  if (!engine_answer(&ask, &written)) engine_fail(written);
}

__attribute__((export_name("handle")))
uint64_t handle(const char *text, size_t length) {
  json event = json_of(text, length);
  json device = json_member(event, "deviceId");
  json values = newest_values(device, window());

  double sum = 0;
  int count = 0;
  json newest = JSON_ABSENT, item;
  for (json_cursor all = json_items(values); json_next(&all, &item);) {
    json value = json_member(item, "value");
    if (!json_is_number(value)) continue; // a sensor that writes "n/a" now and then
    if (count == 0) newest = json_member(item, "datetime");
    sum += json_number(value, 0);
    count++;
  }
  if (count == 0) {
    engine_log(ENGINE_WARN, "no " KEY " of this device is a number");
    return engine_result(JSON_ABSENT);
  }

  write_mean(device, sum / count, newest);
  static char answer[64];
  json_output out = {answer, 0, sizeof answer, false};
  json_open(&out, '{');
  json_name(&out, "mean");
  json_put_number(&out, sum / count);
  json_name(&out, "of");
  json_put_number(&out, count);
  json_close(&out, '}');
  return engine_result((json){answer, out.used});
}
