// The steps of steps.js and module.js, for both kinds of WebAssembly module:
//
//   -mexec-model=reactor    core: the engine calls `alloc` and `handle`
//   -DCOMMAND               a WASI command: stdin, stdout, exit status; host calls as above
//
// It has some steps more, that only a module can take: see the end of the table.
#define ENGINE_REQUEST_BYTES (512 * 1024)
#include "cloudcode.h"

#include <time.h>
#include <unistd.h>
#include <wasi/api.h>

// What a step came to: its result, or an error {"message", "code"}.
typedef struct {
  bool ok;
  json value;
} outcome;

static outcome perform(json step);

static outcome done(json value) { return (outcome){true, value}; }
static outcome nothing(json step) { return done(JSON_ABSENT); }

static json_output room_for(size_t size) { return (json_output){engine_alloc(size), 0, size, false}; }
static json all_of(json_output out) {
  if (out.full) abort();
  return (json){out.at, out.used};
}

static outcome failed(const char *message) {
  json_output out = room_for(2 * strlen(message) + 32);
  json_open(&out, '{');
  json_name(&out, "message");
  json_put_text(&out, message);
  json_close(&out, '}');
  return (outcome){false, all_of(out)};
}

static outcome done_number(double number) {
  json_output out = room_for(32);
  json_put_number(&out, number);
  return done(all_of(out));
}

// The text of a member; "" if it has none.
static char *text_of(json step, const char *name) {
  json value = json_member(step, name);
  char *text = engine_alloc(value.length + 1);
  if (!json_text(value, text, value.length + 1)) text[0] = '\0';
  return text;
}
static double number_of(json step, const char *name) { return json_number(json_member(step, name), 0); }

static json list_of(const json *items, size_t count) {
  size_t size = 2;
  for (size_t i = 0; i < count; i++) size += items[i].length + 5;
  json_output out = room_for(size);
  json_open(&out, '[');
  for (size_t i = 0; i < count; i++) json_copy(&out, items[i]);
  json_close(&out, ']');
  return all_of(out);
}

// Makes room for one more item, from time to time.
static json *grown(json *items, size_t count) {
  if (count & (count - 1)) return items;
  json *larger = (json *)engine_alloc(2 * (count + 1) * sizeof *items);
  return memcpy(larger, items, count * sizeof *items);
}

static outcome perform_all(json list) {
  json *results = NULL, step;
  size_t count = 0;
  for (json_cursor all = json_items(list); json_next(&all, &step);) {
    outcome one = perform(step);
    if (!one.ok) return one;
    results = grown(results, count);
    results[count++] = one.value;
  }
  return done(list_of(results, count));
}

static outcome echo(json step) { return done(json_member(step, "value")); }
static outcome fail(json step) { return failed(text_of(step, "message")); }

static outcome try(json step) {
  outcome tried = perform(json_member(step, "step"));
  json_output out = room_for(tried.value.length + 64);
  json_open(&out, '{');
  json_name(&out, tried.ok ? "value" : "error");
  if (tried.ok) json_copy(&out, tried.value);
  else {
    json_open(&out, '{');
    json_name(&out, "message");
    json_copy(&out, json_member(tried.value, "message"));
    json code = json_member(tried.value, "code");
    if (code.at != NULL) json_name(&out, "code");
    if (code.at != NULL) json_copy(&out, code);
    json_close(&out, '}');
  }
  json_close(&out, '}');
  return done(all_of(out));
}

static outcome repeat(json step) {
  outcome last = done(JSON_ABSENT);
  for (int left = (int)number_of(step, "count"); left > 0 && last.ok; left--) last = perform(json_member(step, "step"));
  return last;
}

static outcome log_line(json step) {
  static const char *levels[] = {"debug", "info", "warn", "error"};
  for (int level = 0; level < 4; level++)
    if (json_is(json_member(step, "level"), levels[level])) engine_log(level, text_of(step, "text"));
  return done(JSON_ABSENT);
}

static outcome log_flood(json step) {
  char line[32];
  for (int i = 0; i < (int)number_of(step, "count"); i++) {
    sprintf(line, "line %d", i);
    engine_log(ENGINE_INFO, line);
  }
  return done(JSON_ABSENT);
}

static char *xs(size_t length) { return memset(engine_alloc(length), 'x', length); }

static outcome log_long(json step) {
  size_t length = (size_t)number_of(step, "length");
  engine__log(ENGINE_INFO, xs(length), length);
  return done(JSON_ABSENT);
}

static outcome text(json step) {
  size_t length = (size_t)number_of(step, "length") + 2;
  char *quoted = xs(length);
  quoted[0] = quoted[length - 1] = '"';
  return done((json){quoted, length});
}

static outcome clock_now(json step) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return done_number((double)now.tv_sec * 1000 + (double)now.tv_nsec / 1e6);
}

static outcome work(json step) {
  for (volatile double left = number_of(step, "loops"); left > 0;) left = left - 1;
  return done(JSON_ABSENT);
}

static outcome chance(json step) {
  size_t count = (size_t)number_of(step, "count");
  uint32_t *words = (uint32_t *)engine_alloc(count * sizeof *words);
  if (__wasi_random_get((uint8_t *)words, count * sizeof *words) != 0) return failed("no chance");
  json *numbers = (json *)engine_alloc(count * sizeof *numbers);
  for (size_t i = 0; i < count; i++) numbers[i] = done_number(words[i]).value;
  return done(list_of(numbers, count));
}

static outcome count_runs(json step) {
  static int runs;
  return done_number(++runs);
}

static outcome spin(json step) {
  for (volatile int turns = 0;; turns++);
}

static outcome allocate(json step) {
  for (;;) memset(engine_alloc(1 << 20), 1, 1 << 20);
}

// Host calls.

static outcome answered(json_output *ask) {
  outcome answer;
  answer.ok = engine_answer(ask, &answer.value);
  return answer;
}

static void copy_members(json_output *ask, json step, const char **names) {
  for (; *names != NULL; names++) {
    json value = json_member(step, *names);
    if (value.at == NULL) continue;
    json_name(ask, *names);
    json_copy(ask, value);
  }
}

// The same member of each item of an answer.
static outcome plucked(outcome answer, const char *name) {
  if (!answer.ok) return answer;
  json *found = NULL, item;
  size_t count = 0;
  for (json_cursor all = json_items(answer.value); json_next(&all, &item);) {
    found = grown(found, count);
    found[count++] = json_member(item, name);
  }
  return done(list_of(found, count));
}

static outcome timer(json step) {
  json_output ask = engine_ask("timer");
  copy_members(&ask, step, (const char *[]){"ms", NULL});
  return answered(&ask);
}

static outcome read_values(json step) {
  json_output ask = engine_ask("devices.values");
  copy_members(&ask, step, (const char *[]){"device", "key", "limit", "start", "end", NULL});
  return plucked(answered(&ask), "value");
}

static outcome write_values(json step) {
  json_output ask = engine_ask("devices.write");
  copy_members(&ask, step, (const char *[]){"device", "values", NULL});
  outcome answer = answered(&ask);
  return answer.ok ? done(JSON_ABSENT) : answer;
}

static outcome list_devices(json step) {
  json_output ask = engine_ask("devices.list");
  return plucked(answered(&ask), "name");
}

static outcome send_message(json step) {
  json_output ask = engine_ask("connection.send");
  copy_members(&ask, step, (const char *[]){"connection", "message", NULL});
  return answered(&ask);
}

static outcome key_value(json step) {
  char operation[16];
  snprintf(operation, sizeof operation, "kv.%s", text_of(step, "operation"));
  json_output ask = engine_ask(operation);
  copy_members(&ask, step, (const char *[]){"key", "value", "namespace", "ttl_seconds", "prefix", "limit", "cursor", NULL});
  return answered(&ask);
}

static outcome progress(json step) {
  json_output ask = engine_ask("job.progress");
  copy_members(&ask, step, (const char *[]){"value", "message", NULL});
  return answered(&ask);
}

// The value of a header in [[name, value], ...]; names are in lower case.
static json header_of(json headers, const char *wanted) {
  json pair, name, value;
  for (json_cursor all = json_items(headers); json_next(&all, &pair);) {
    json_cursor both = json_items(pair);
    if (json_next(&both, &name) && json_next(&both, &value) && json_is(name, wanted)) return value;
  }
  return JSON_ABSENT;
}

static outcome fetch(json step) {
  json_output ask = engine_ask("fetch");
  copy_members(&ask, step, (const char *[]){"url", "method", NULL});
  json body = json_member(step, "body");
  if (body.at != NULL) {
    json_name(&ask, "body");
    json_put_text(&ask, memcpy(engine_alloc(body.length), body.at, body.length));
  }
  outcome answer = answered(&ask);
  if (!answer.ok) return answer;
  json_output out = room_for(answer.value.length + 64);
  json_open(&out, '{');
  json_name(&out, "status");
  json_copy(&out, json_member(answer.value, "status"));
  json_name(&out, "mine");
  json_copy(&out, header_of(json_member(answer.value, "headers"), "x-mine"));
  json_name(&out, "body");
  json_copy(&out, json_member(answer.value, "body"));
  json_close(&out, '}');
  return done(all_of(out));
}

static outcome context(json step) {
  json_output ask = engine_ask("context");
  return answered(&ask);
}

static outcome env(json step) {
  json_output ask = engine_ask("env");
  outcome answer = answered(&ask);
  if (!answer.ok) return answer;
  json *found = NULL, name;
  size_t count = 0;
  for (json_cursor all = json_items(json_member(step, "names")); json_next(&all, &name);) {
    char *text = engine_alloc(name.length + 1);
    json_text(name, text, name.length + 1);
    found = grown(found, count);
    found[count++] = json_member(answer.value, text);
  }
  return done(list_of(found, count));
}

// For modules alone.

// Any host call, with any arguments.
static outcome call(json step) {
  json_output ask = engine_ask(text_of(step, "operation"));
  json arguments = json_member(step, "arguments"), name, value;
  json_cursor inside = json__inside(arguments);
  while (arguments.length > 2 && json_next(&inside, &name)) {
    inside.at++; // the colon
    json_next(&inside, &value);
    char *text = engine_alloc(name.length);
    json_text(name, text, name.length);
    json_name(&ask, text);
    json_copy(&ask, value);
  }
  return answered(&ask);
}

static outcome from_getenv(json step) {
  json *found = NULL, name;
  size_t count = 0;
  for (json_cursor all = json_items(json_member(step, "names")); json_next(&all, &name);) {
    char *text = engine_alloc(name.length + 1);
    json_text(name, text, name.length + 1);
    const char *value = getenv(text);
    json_output out = room_for(value == NULL ? 8 : 2 * strlen(value) + 8);
    if (value == NULL) json_copy(&out, JSON_ABSENT);
    else json_put_text(&out, value);
    found = grown(found, count);
    found[count++] = all_of(out);
  }
  return done(list_of(found, count));
}

static outcome arguments(json step) {
  size_t count, size;
  if (__wasi_args_sizes_get(&count, &size) != 0) return failed("no arguments");
  uint8_t **texts = (uint8_t **)engine_alloc((count + 1) * sizeof *texts);
  if (__wasi_args_get(texts, (uint8_t *)engine_alloc(size)) != 0) return failed("no arguments");
  json_output out = room_for(2 * size + 4 * count + 2);
  json_open(&out, '[');
  for (size_t i = 0; i < count; i++) json_put_text(&out, (char *)texts[i]);
  json_close(&out, ']');
  return done(all_of(out));
}

// Sleeps as C programs do.
static outcome nap(json step) {
  int ms = (int)number_of(step, "ms");
  struct timespec wait = {ms / 1000, ms % 1000 * 1000000L};
  return nanosleep(&wait, NULL) == 0 ? done(JSON_ABSENT) : failed("no sleep");
}

static outcome say(json step) { // on stderr
  fprintf(stderr, "%s\n", text_of(step, "text"));
  return done(JSON_ABSENT);
}

static outcome divide(json step) {
  volatile int seven = 7, zero = 0;
  return done_number(seven / zero);
}

static outcome stray(json step) {
  volatile uintptr_t nowhere = 0xFFFFFF00;
  return done_number(*(volatile uint8_t *)nowhere);
}

static const struct {
  const char *name;
  outcome (*work)(json step);
} STEPS[] = {
  {"echo", echo}, {"nothing", nothing}, {"fail", fail}, {"try", try}, {"repeat", repeat},
  {"log", log_line}, {"log_flood", log_flood}, {"log_long", log_long}, {"clock", clock_now},
  {"work", work}, {"timer", timer}, {"chance", chance}, {"text", text}, {"count", count_runs},
  {"spin", spin}, {"allocate", allocate}, {"read", read_values}, {"write", write_values},
  {"list", list_devices}, {"kv", key_value}, {"send", send_message}, {"fetch", fetch}, {"context", context},
  {"env", env}, {"progress", progress},
  {"call", call}, {"getenv", from_getenv}, {"arguments", arguments}, {"nap", nap}, {"say", say},
  {"divide", divide}, {"stray", stray},
};

static outcome perform(json step) {
  if (json__begins(step, '[')) return perform_all(step);
  for (size_t i = 0; i < sizeof STEPS / sizeof *STEPS; i++)
    if (json_is(json_member(step, "do"), STEPS[i].name)) return STEPS[i].work(step);
  return failed("there is no such step");
}

// What the handler `fetch` answers: the request, in a mirror.
static outcome mirror(json request) {
  json method = json_member(request, "method");
  if (json_is(method, "PATCH")) return done(request); // no response: any other JSON
  json type = header_of(json_member(request, "headers"), "content-type");
  json_output out = room_for(request.length + 256);
  json_open(&out, '{');
  json_name(&out, "status");
  json_put_number(&out, 201);
  json_name(&out, "headers");
  json_open(&out, '{');
  json_name(&out, "content-type");
  json_copy(&out, type.at == NULL ? (json){"\"text/plain\"", 12} : type);
  json_name(&out, "x-method");
  json_copy(&out, method);
  json_name(&out, "x-url");
  json_copy(&out, json_member(request, "url"));
  json_close(&out, '}');
  copy_members(&out, request, (const char *[]){"body", "body_base64", NULL});
  json_close(&out, '}');
  return done(all_of(out));
}

static outcome begin(json input) {
  if (json__begins(input, '[') || json_member(input, "do").at != NULL) return perform(input);
  if (json_member(input, "url").at != NULL) return mirror(input);
  json first;
  json_cursor values = json_items(json_member(json_member(input, "data"), "values"));
  if (json_next(&values, &first) && json_is(json_member(first, "key"), "do")) return perform(json_member(first, "value"));
  return done(input);
}

// Says the error on stderr, which is the log, and ends the run.
static _Noreturn void give_up(json error) {
  fprintf(stderr, "%s\n", text_of(error, "message"));
  exit(3);
}

#ifdef COMMAND
static json input(void) {
  size_t size = 4096, used = 0;
  char *text = malloc(size + 1);
  for (ssize_t got; (got = read(0, text + used, size - used)) > 0;) {
    used += (size_t)got;
    if (used == size) text = realloc(text, (size *= 2) + 1);
  }
  text[used] = '\0';
  return json_of(text, used);
}

int main(void) {
  outcome it = begin(input());
  if (!it.ok) give_up(it.value);
  if (it.value.at != NULL) fwrite(it.value.at, 1, it.value.length, stdout);
}
#else
__attribute__((export_name("handle")))
uint64_t handle(const char *text, size_t length) {
  outcome it = begin(json_of(text, length));
  if (!it.ok) give_up(it.value);
  return engine_result(it.value);
}
#endif
