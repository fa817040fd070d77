// JSON in and out without a library: looks into text that the engine wrote, and writes answers.
//
// Bounds: the reader does not check that text is JSON (the engine has), but never reads outside of
// what it was given; anything that is not there, or of another type, is "absent". Members are found
// by walking over what stands before them. Of two members with one name the first is taken. A
// number has to be followed by a byte that is no part of it, which engine_alloc and the buffers here
// see to. The writer fills the buffer that it is given and then says so, in json_output.full.
#ifndef CLOUDCODE_JSON_H
#define CLOUDCODE_JSON_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define JSON_USED __attribute__((unused)) // a program need not use all of it

// A value inside of some JSON text; `at` NULL: absent.
typedef struct {
  const char *at;
  size_t length;
} json;

typedef struct {
  const char *at, *end;
} json_cursor;

static const json JSON_ABSENT = {NULL, 0};

// Reading. What begins with json__ is for this file alone.

static void json__space(json_cursor *cursor) {
  while (cursor->at < cursor->end && strchr(" \t\n\r", *cursor->at) && *cursor->at) cursor->at++;
}

// Behind the string whose opening quote the cursor stands on.
static void json__skip_string(json_cursor *cursor) {
  for (cursor->at++; cursor->at < cursor->end; cursor->at++) {
    if (*cursor->at == '\\') cursor->at++;
    else if (*cursor->at == '"') break;
  }
  cursor->at = cursor->at < cursor->end ? cursor->at + 1 : cursor->end;
}

// The value at the cursor, which then stands behind it. No recursion: depth only counts brackets.
static json json__take(json_cursor *cursor) {
  json__space(cursor);
  const char *start = cursor->at;
  size_t depth = 0;
  while (cursor->at < cursor->end) {
    char sign = *cursor->at;
    if (sign == '"') {
      json__skip_string(cursor);
      if (depth == 0) break;
      continue;
    }
    if (depth == 0 && (sign == ',' || sign == ']' || sign == '}')) break;
    cursor->at++;
    if (sign == '[' || sign == '{') depth++;
    if ((sign == ']' || sign == '}') && --depth == 0) break;
  }
  json found = {start, (size_t)(cursor->at - start)};
  while (found.length > 0 && strchr(" \t\n\r", found.at[found.length - 1])) found.length--;
  return found.length > 0 ? found : JSON_ABSENT;
}

static unsigned json__hex4(const char *at) {
  unsigned value = 0;
  for (int i = 0; i < 4; i++) {
    char sign = at[i];
    unsigned digit = sign <= '9' ? (unsigned)(sign - '0') : (unsigned)((sign | 0x20) - 'a' + 10);
    value = value << 4 | (digit & 15);
  }
  return value;
}

// The next character of a string as UTF-8, in `to`; how many bytes, 0 at the end. A lone half of a
// surrogate pair, which UTF-8 cannot hold, becomes U+FFFD.
static size_t json__character(json_cursor *cursor, char to[4]) {
  if (cursor->at >= cursor->end) return 0;
  to[0] = *cursor->at++;
  if (to[0] != '\\' || cursor->at >= cursor->end) return 1;
  char escape = *cursor->at++;
  const char *known = "\"\\/bfnrt", *means = "\"\\/\b\f\n\r\t", *found = strchr(known, escape);
  if (found != NULL && escape != '\0') {
    to[0] = means[found - known];
    return 1;
  }
  if (escape != 'u' || cursor->end - cursor->at < 4) return 1;
  unsigned code = json__hex4(cursor->at);
  cursor->at += 4;
  bool half = code >= 0xD800 && code <= 0xDFFF;
  if (half && code <= 0xDBFF && cursor->end - cursor->at >= 6 && memcmp(cursor->at, "\\u", 2) == 0) {
    unsigned low = json__hex4(cursor->at + 2);
    if (low >= 0xDC00 && low <= 0xDFFF) {
      code = 0x10000 + ((code - 0xD800) << 10 | (low - 0xDC00));
      cursor->at += 6;
      half = false;
    }
  }
  if (half) code = 0xFFFD;
  size_t length = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
  for (size_t i = length - 1; i > 0; i--, code >>= 6) to[i] = (char)(0x80 | (code & 0x3F));
  to[0] = (char)(length == 1 ? code : (0xF00u >> length & 0xFF) | code);
  return length;
}

static json_cursor json__inside(json value) { // without the brackets or quotes
  return (json_cursor){value.at + 1, value.at + value.length - 1};
}

static bool json__begins(json value, char sign) {
  return value.at != NULL && value.length >= 2 && *value.at == sign;
}

// The value of a whole text, which may begin and end with white space.
JSON_USED static json json_of(const char *text, size_t length) {
  json_cursor cursor = {text, text + length};
  return json__take(&cursor);
}

// Is the string `value` this text, however it is escaped?
JSON_USED static bool json_is(json value, const char *text) {
  if (!json__begins(value, '"')) return false;
  json_cursor cursor = json__inside(value);
  char bytes[4];
  size_t count;
  while ((count = json__character(&cursor, bytes)) > 0) {
    if (bytes[0] == '\0' || strncmp(text, bytes, count) != 0) return false;
    text += count;
  }
  return *text == '\0';
}

// The member of an object, or absent.
JSON_USED static json json_member(json object, const char *name) {
  if (!json__begins(object, '{')) return JSON_ABSENT;
  json_cursor cursor = json__inside(object);
  for (;;) {
    json__space(&cursor);
    if (cursor.at >= cursor.end || *cursor.at != '"') return JSON_ABSENT;
    const char *start = cursor.at;
    json__skip_string(&cursor);
    json found = {start, (size_t)(cursor.at - start)};
    json__space(&cursor);
    if (cursor.at < cursor.end && *cursor.at == ':') cursor.at++;
    json value = json__take(&cursor);
    if (json_is(found, name)) return value;
    if (cursor.at < cursor.end && *cursor.at == ',') cursor.at++;
  }
}

// A walk over an array: for (json_cursor all = json_items(array); json_next(&all, &item);) ...
JSON_USED static json_cursor json_items(json array) {
  return json__begins(array, '[') ? json__inside(array) : (json_cursor){NULL, NULL};
}

JSON_USED static bool json_next(json_cursor *items, json *item) {
  if (items->at == NULL) return false;
  *item = json__take(items);
  json__space(items);
  if (items->at < items->end && *items->at == ',') items->at++;
  return item->at != NULL;
}

JSON_USED static bool json_is_true(json value) {
  return value.length == 4 && memcmp(value.at, "true", 4) == 0;
}

// The number, or `otherwise` if it is none.
JSON_USED static double json_number(json value, double otherwise) {
  if (value.at == NULL || strchr("-0123456789", *value.at) == NULL || *value.at == '\0') return otherwise;
  return strtod(value.at, NULL);
}

JSON_USED static bool json_is_number(json value) { return !isnan(json_number(value, NAN)); }

// The string as UTF-8 in `to`, ended by a 0; false if it is none, holds U+0000 or does not fit.
JSON_USED static bool json_text(json value, char *to, size_t size) {
  if (!json__begins(value, '"') || size == 0) return false;
  json_cursor cursor = json__inside(value);
  size_t used = 0, count;
  char bytes[4];
  while ((count = json__character(&cursor, bytes)) > 0) {
    if (bytes[0] == '\0' || count >= size - used) return false;
    memcpy(to + used, bytes, count);
    used += count;
  }
  to[used] = '\0';
  return true;
}

// Writing: commas are set where they belong.

typedef struct {
  char *at;
  size_t used, size;
  bool full; // what was written last did not fit, and is missing
} json_output;

static void json__put(json_output *out, const char *bytes, size_t length) {
  if (out->full || length > out->size - out->used) {
    out->full = true;
    return;
  }
  memcpy(out->at + out->used, bytes, length);
  out->used += length;
}

static void json__comma(json_output *out) {
  // A complete value ends with none of these, so no state is needed.
  if (out->used > 0 && strchr("{[:", out->at[out->used - 1]) == NULL) json__put(out, ",", 1);
}

// Text that is JSON already: a value that was read, true, null.
JSON_USED static void json_copy(json_output *out, json value) {
  json__comma(out);
  if (value.at == NULL) json__put(out, "null", 4);
  else json__put(out, value.at, value.length);
}

JSON_USED static void json_open(json_output *out, char bracket) { // { or [
  json__comma(out);
  json__put(out, &bracket, 1);
}

JSON_USED static void json_close(json_output *out, char bracket) { json__put(out, &bracket, 1); }

JSON_USED static void json_put_text(json_output *out, const char *text) {
  json__comma(out);
  json__put(out, "\"", 1);
  for (; *text != '\0'; text++) {
    char escaped[8];
    if (*text == '"' || *text == '\\') json__put(out, escaped, (size_t)sprintf(escaped, "\\%c", *text));
    else if ((unsigned char)*text < 0x20) json__put(out, escaped, (size_t)sprintf(escaped, "\\u%04x", *text));
    else json__put(out, text, 1);
  }
  json__put(out, "\"", 1);
}

// The shortest of 15 to 17 digits that reads back as the same number; null if JSON has none for it.
JSON_USED static void json_put_number(json_output *out, double number) {
  char text[32] = "null";
  if (isfinite(number))
    for (int digits = 15; digits <= 17; digits++) {
      snprintf(text, sizeof text, "%.*g", digits, number);
      if (strtod(text, NULL) == number) break;
    }
  json__comma(out);
  json__put(out, text, strlen(text));
}

JSON_USED static void json_name(json_output *out, const char *name) {
  json_put_text(out, name);
  json__put(out, ":", 1);
}

#endif
