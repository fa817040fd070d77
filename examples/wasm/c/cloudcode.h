// The engine's host calls for functions of the core kind, in C. See ../README.md for the ABI.
//
//   clang --target=wasm32-wasi -mexec-model=reactor -O2 -Wl,--strip-debug rolling_mean.c -o rolling_mean.wasm
//
// Memory: what engine_alloc gave out, to the engine or to the function, is given back when the next
// run begins, so an instance may be reused. Requests have to fit into ENGINE_REQUEST_BYTES.
#ifndef CLOUDCODE_H
#define CLOUDCODE_H

#include "json.h"

#ifndef ENGINE_REQUEST_BYTES
#define ENGINE_REQUEST_BYTES 16384
#endif

enum engine_level { ENGINE_DEBUG, ENGINE_INFO, ENGINE_WARN, ENGINE_ERROR };

__attribute__((import_module("engine"), import_name("call")))
uint64_t engine__call(const char *request, size_t length);

__attribute__((import_module("engine"), import_name("log")))
void engine__log(int32_t level, const char *text, size_t length);

// One block of memory more than malloc's, so that all of a run's can be found and freed.
typedef struct engine__block {
  struct engine__block *next;
  char room[];
} engine__block;

static engine__block *engine__blocks;
static bool engine__ended;

// The engine calls this too: for the event, and for the answer of each host call. The byte behind
// the last is 0.
__attribute__((export_name("alloc")))
JSON_USED void *engine_alloc(size_t size) {
  while (engine__ended && engine__blocks != NULL) {
    engine__block *block = engine__blocks;
    engine__blocks = block->next;
    free(block);
  }
  engine__ended = false;
  if (size > SIZE_MAX - sizeof(engine__block) - 1) abort();
  engine__block *block = malloc(sizeof(engine__block) + size + 1);
  if (block == NULL) abort(); // the version's memory_mb is used up
  block->next = engine__blocks;
  block->room[size] = '\0';
  engine__blocks = block;
  return block->room;
}

JSON_USED static void engine_log(enum engine_level level, const char *text) {
  engine__log(level, text, strlen(text));
}

// Host calls: engine_ask names the operation, json_name and json_put_* write its arguments,
// engine_answer makes the call.

static char engine__request[ENGINE_REQUEST_BYTES];

JSON_USED static json_output engine_ask(const char *operation) {
  json_output ask = {engine__request, 0, sizeof engine__request, false};
  json_open(&ask, '{');
  json_name(&ask, "operation");
  json_put_text(&ask, operation);
  json_name(&ask, "arguments");
  json_open(&ask, '{');
  return ask;
}

// Makes the call. `*value` is what the operation answers or, when this returns false, its error:
// {"name", "message", "code"}.
JSON_USED static bool engine_answer(json_output *ask, json *value) {
  json_close(ask, '}');
  json_close(ask, '}');
  if (ask->full) {
    engine_log(ENGINE_ERROR, "the request is larger than ENGINE_REQUEST_BYTES");
    abort();
  }
  uint64_t at_and_length = engine__call(ask->at, ask->used);
  json answer = json_of((const char *)(uintptr_t)(at_and_length >> 32), (uint32_t)at_and_length);
  bool ok = json_is_true(json_member(answer, "ok"));
  *value = json_member(answer, ok ? "value" : "error");
  return ok;
}

// Logs why a host call was refused and ends the run as failed: nothing that it wrote is kept.
JSON_USED __attribute__((noreturn)) static void engine_fail(json error) {
  char message[512] = "a host call was refused";
  json_text(json_member(error, "message"), message, sizeof message);
  engine_log(ENGINE_ERROR, message);
  abort();
}

// What `handle` returns.
JSON_USED static uint64_t engine_result(json value) {
  engine__ended = true;
  if (value.at == NULL) value = (json){"null", 4};
  return (uint64_t)(uintptr_t)value.at << 32 | value.length;
}

#endif
