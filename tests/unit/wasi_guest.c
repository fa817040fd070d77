// What a C program finds when it looks around: one line for each thing, on stdout.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static void say(const char *what, long long number) { printf("%s %lld\n", what, number); }

static void say_refused(const char *what, int result) { say(what, result < 0 ? errno : 0); }

static long long now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

int main(int argc, char **argv) {
  for (int i = 0; i < argc; i++) printf("argument %s\n", argv[i]);
  printf("home %s\n", getenv("HOME") ? getenv("HOME") : "none");
  printf("word %s\n", getenv("WORD") ? getenv("WORD") : "none");

  struct stat found;
  say_refused("open", open("/etc/passwd", O_RDONLY));
  say_refused("create", open("file", O_CREAT | O_WRONLY));
  say_refused("stat", stat("/", &found));
  say_refused("rename", rename("a", "b"));
  say_refused("unlink", unlink("/work"));
  say_refused("mkdir", mkdir("d", 0));
  say_refused("opendir", opendir(".") == NULL ? -1 : 0);
  say_refused("seek", (int)lseek(0, 0, SEEK_SET));
  say("terminal", isatty(0) || isatty(1) || isatty(2));

  char text[16];
  long long total = 0, got;
  while ((got = read(0, text, sizeof text)) > 0) total += got;
  say("read", total);
  say("read at the end", got);
  say("read again", read(0, text, sizeof text));

  time_t began = time(NULL);
  long long before_ms = now_ms();
  usleep(250 * 1000);
  say("time", began);
  say("slept", now_ms() - before_ms);

  fprintf(stderr, "half a line, ");
  fprintf(stderr, "and its end\nlast words");
  close(2);
  say_refused("write to what is closed", (int)write(2, "x", 1));
  say_refused("close again", close(2));
  return 7;
}
