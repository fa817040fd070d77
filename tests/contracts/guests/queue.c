// A command that wants each message whose body is "again" to come again, at once.
#include "json.h"

static char batch_text[1024 * 1024 + 1]; // zeroed, so the byte behind the batch is 0

int main(void) {
  size_t length = fread(batch_text, 1, sizeof batch_text - 1, stdin);
  json messages = json_member(json_of(batch_text, length), "messages");
  char answer[16 * 1024], body[16];
  json_output out = {answer, 0, sizeof answer, false};
  json_open(&out, '{');
  json_name(&out, "retry");
  json_open(&out, '[');
  json message;
  for (json_cursor all = json_items(messages); json_next(&all, &message);) {
    if (!json_text(json_member(message, "body"), body, sizeof body)) continue;
    if (strcmp(body, "again") != 0) continue;
    json_open(&out, '{');
    json_name(&out, "id");
    json_copy(&out, json_member(message, "id"));
    json_name(&out, "delay_seconds");
    json_put_number(&out, 0);
    json_close(&out, '}');
  }
  json_close(&out, ']');
  json_close(&out, '}');
  fwrite(answer, 1, out.used, stdout);
  return out.full;
}
