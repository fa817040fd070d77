// Sums up the numbers of one event: a plain program that knows nothing of the engine.
//
//   clang --target=wasm32-wasi -O2 -Wl,--strip-debug report.c -o report.wasm
//   cc report.c -lm -o report && echo '{"values":[{"value":21.5},{"value":24}]}' | LIMIT=22 ./report
//
// The event comes from stdin, the answer goes to stdout, each line of stderr becomes a line of the
// log, and LIMIT is a variable of the function. It takes {"values": [...]} as well as a device's
// event, where they stand in "data".
#include "json.h"

#define EVENT_BYTES_MAX (1024 * 1024)

static char event_text[EVENT_BYTES_MAX + 1]; // zeroed, so the byte behind the event is 0

int main(void) {
  size_t length = fread(event_text, 1, EVENT_BYTES_MAX, stdin);
  if (!feof(stdin) && fgetc(stdin) != EOF) {
    fprintf(stderr, "the event is larger than %d bytes\n", EVENT_BYTES_MAX);
    return 2;
  }
  json event = json_of(event_text, length);
  json data = json_member(event, "data");
  json values = json_member(data.at != NULL ? data : event, "values");
  if (values.at == NULL) {
    fputs("the event has no values\n", stderr);
    return 1;
  }

  const char *limit_text = getenv("LIMIT");
  double limit = limit_text != NULL ? strtod(limit_text, NULL) : INFINITY;
  double sum = 0, least = INFINITY, most = -INFINITY;
  int count = 0, over = 0;
  json item;
  for (json_cursor all = json_items(values); json_next(&all, &item);) {
    json value = json_member(item, "value");
    if (!json_is_number(value)) continue;
    double number = json_number(value, 0);
    char key[64];
    if (number > limit) {
      if (!json_text(json_member(item, "key"), key, sizeof key)) strcpy(key, "a value");
      fprintf(stderr, "%s is %g, over %g\n", key, number, limit);
      over++;
    }
    sum += number;
    least = fmin(least, number);
    most = fmax(most, number);
    count++;
  }

  char answer[256];
  json_output out = {answer, 0, sizeof answer, false};
  json_open(&out, '{');
  json_name(&out, "count");
  json_put_number(&out, count);
  json_name(&out, "over");
  json_put_number(&out, over);
  json_name(&out, "least");
  json_put_number(&out, least); // of no numbers: null
  json_name(&out, "most");
  json_put_number(&out, most);
  json_name(&out, "mean");
  json_put_number(&out, count > 0 ? sum / count : NAN);
  json_close(&out, '}');
  printf("%.*s\n", (int)out.used, answer);
  return 0;
}
