"""C and Rust programs as people write them: what their library asks for is there, or refused well.

Where the answer is the same on every system, it has to be that of Wasmtime's own WASI.
"""

import base64
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from runtimes.contract import LoadFailed
from runtimes.webassembly.program import BuildHeader, compile_module
from tests.standins.wasm_toolchains import c_module, rust_module, wat_module

SAY = r"""
// Reads "descriptor status", and the text that it writes there before it exits.
#include <stdio.h>
#include <stdlib.h>

int main(void) {
  int descriptor, status, byte;
  if (scanf("%d %d", &descriptor, &status) != 2) return 99;
  getchar();
  FILE *stream = descriptor == 1 ? stdout : stderr;
  while ((byte = getchar()) != EOF) putc(byte, stream);
  exit(status);
}
"""
LIBRARY = r"""
// What differs between runs is told as whether it is as it should be.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/select.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static void say(const char *what, int result) {
  printf("%s: %d, %s\n", what, result, result < 0 ? strerror(errno) : "fine");
}

static long long now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void files(void) {
  struct stat found;
  char path[100];
  say("fopen", fopen("settings.ini", "r") ? 0 : -1);
  say("fopen to write", fopen("/tmp/result", "w") ? 0 : -1);
  say("opendir", opendir(".") ? 0 : -1);
  say("stat", stat("/", &found));
  say("remove", remove("settings.ini"));
  say("seek", fseek(stdin, 5, SEEK_SET));
  say("tell", (int)ftell(stdin));
  say("write to stdin", (int)write(0, "x", 1));
  say("read from stdout", (int)read(1, path, 1));
  say("close what is not open", close(9));
  say("terminal", isatty(0) || isatty(1));
  printf("in %s\n", getcwd(path, sizeof path));
}

static void waiting(void) {
  struct pollfd streams[2] = {{0, POLLIN, 0}, {1, POLLOUT, 0}};
  struct timeval second = {1, 0};
  fd_set readable;
  FD_ZERO(&readable);
  FD_SET(0, &readable);
  printf("poll %d: ", poll(streams, 2, -1));
  printf("%d %d\n", streams[0].revents, streams[1].revents);
  printf("select %d\n", select(1, &readable, 0, 0, &second));
  printf("poll nothing %d\n", poll(0, 0, 20));
  long long began = now_ns();
  struct timespec nap = {0, 30000000};
  printf("nanosleep %d\n", nanosleep(&nap, 0));
  nap.tv_sec = (began + 60000000) / 1000000000;
  nap.tv_nsec = (began + 60000000) % 1000000000;
  printf("until %d\n", clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &nap, 0));
  printf("slept %d\n", now_ns() - began >= 60000000);
}

static void time_and_chance(void) {
  struct timeval now;
  time_t seconds = time(0);
  char one[16], other[16], much[300];
  gettimeofday(&now, 0);
  printf("time %d, of %s\n", labs((long)(now.tv_sec - seconds)) < 2, localtime(&seconds)->tm_zone);
  printf("this century %d\n", gmtime(&seconds)->tm_year > 120);
  printf("getentropy %d %d\n", getentropy(one, 16), getentropy(other, 16));
  printf("differs %d\n", memcmp(one, other, 16) != 0 && arc4random() != arc4random());
  say("too much at once", getentropy(much, sizeof much));
}

static void input(void) {
  char part[8], *line = 0, word[20];
  size_t room = 0;
  double number;
  printf("%d: %s %.2f\n", scanf("%19s %lf", word, &number), word, number);
  printf("[%s]", fgets(part, sizeof part, stdin));
  printf("[%s]\n", fgets(part, sizeof part, stdin));
  for (long length; (length = getline(&line, &room, stdin)) >= 0;) printf("(%ld)", length);
  printf(" end %d, error %d\n", feof(stdin), ferror(stdin));
  clearerr(stdin);
  printf("%d\n", fgetc(stdin));
  ungetc('x', stdin);
  printf("%c\n", fgetc(stdin));
}

int main(int count, char **arguments) {
  for (int n = 0; n < count; n++) printf("argument [%s]\n", arguments[n]);
  for (char **one = environ; *one; one++) printf("variable [%s]\n", *one);
  setenv("MODE", "changed", 1);
  unsetenv("EMPTY");
  printf("%s %d\n", getenv("MODE"), getenv("EMPTY") == 0);
  files();
  waiting();
  time_and_chance();
  input();
  return 0;
}
"""
COPY = r"""
#include <unistd.h>

int main(void) {
  char byte;
  while (read(0, &byte, 1) == 1) write(1, &byte, 1);
  return 0;
}
"""
VECTORS = r"""
// Its second vector is no memory of its.
#include <stdio.h>
#include <wasi/api.h>

int main(void) {
  uint8_t text[4] = "....", *nowhere = (uint8_t *)0xfffffff0;
  __wasi_size_t count = 0;
  __wasi_iovec_t in[2] = {{text, 2}, {nowhere, 2}};
  __wasi_ciovec_t out[2] = {{text, 2}, {nowhere, 2}};
  int read = __wasi_fd_read(0, in, 2, &count), written = __wasi_fd_write(1, out, 2, &count);
  int again = __wasi_fd_read(0, in, 1, &count);
  printf("%d %d, then %d: %u of %.2s", read, written, again, (unsigned)count, text);
  return 0;
}
"""
RUST = r"""
use std::collections::HashMap;
use std::io::{self, BufRead, Read, Write};
use std::time::{Duration, Instant, SystemTime};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let variables: Vec<(String, String)> = std::env::vars().collect();
    println!("{:?} {:?}", arguments, variables);
    let squares: HashMap<u64, u64> = (0..100).map(|n| (n, n * n)).collect();
    println!("{}", squares.values().sum::<u64>());

    let began = Instant::now();
    std::thread::sleep(Duration::from_millis(20));
    println!("slept {}", began.elapsed() >= Duration::from_millis(20));
    println!("now {}", SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).is_ok());

    println!("{:?}", std::fs::read_to_string("settings.toml"));
    println!("{:?}", std::fs::read_dir(".").err());
    println!("{:?}", std::env::current_dir());
    println!("{:?}", std::thread::Builder::new().spawn(|| ()).err());
    println!("{:?}", std::net::TcpStream::connect("127.0.0.1:80").err());
    println!("{:?}", std::process::Command::new("ls").output().err());
    println!("{}", Vec::<u8>::new().try_reserve(3 << 30).is_err());

    let mut first = String::new();
    io::stdin().read_line(&mut first).unwrap();
    let (mut rest, stdin) = (String::new(), io::stdin());
    let second = stdin.lock().lines().next().unwrap().unwrap();
    io::stdin().read_to_string(&mut rest).unwrap();
    print!("{:?} {:?} {}", first, second, rest.len());
    io::stdout().flush().unwrap();
    std::process::exit(0);
}
"""
GO_PANIC = "panic: boom\n\ngoroutine 1 [running]:\nmain.main()\n\t/src/main.go:6 +0x114\n"
RUST_PANIC = "thread 'main' panicked at 'boom', src/main.rs:2:5\nnote: run with ...\n"
RUST_PANIC_NOW = "thread 'main' (1) panicked at src/main.rs:2:5:\nboom\nnote: run with ...\n"
SCRIPT_ERROR = "Error: no such thing\n    at f (main.js:1:10)\n    at main.js:2:1\n\n"

Deploy = Callable[..., str]


@pytest.fixture(scope="module")
def deploy(engine: Any) -> Deploy:
    """Puts a program live as a filter of text; returns its name, which begins with `wq-`."""

    def put(name: str, module: bytes, **fields: Any) -> str:
        body = {"name": f"wq-{name}", "runtime": "wasm", "wasm": base64.b64encode(module).decode()}
        engine.ok("POST", "/v1/functions", body | {"io": "text"} | fields)
        return f"wq-{name}"

    return put


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], bytes]:
    """Compiles a program that stands here as text."""
    folder = tmp_path_factory.mktemp("programs")

    def build(name: str, text: str) -> bytes:
        source = folder / name
        source.write_text(text)
        return rust_module(source, command=True) if name.endswith(".rs") else c_module(source)

    return build


@pytest.fixture(scope="module")
def say(deploy: Deploy, built: Callable[[str, str], bytes]) -> str:
    return deploy("say", built("say.c", SAY))


def by_wasmtime(
    module: bytes, folder: Path, stdin: str, argv: list[str], env: dict[str, str]
) -> str:
    """Run a command with the WASI that comes with Wasmtime, and return its stdout."""
    engine = wasmtime.Engine()
    linker, store, wasi = wasmtime.Linker(engine), wasmtime.Store(engine), wasmtime.WasiConfig()
    linker.define_wasi()
    (folder / "stdin").write_text(stdin)
    wasi.argv, wasi.env = argv, list(env.items())
    wasi.stdin_file, wasi.stdout_file = str(folder / "stdin"), str(folder / "stdout")
    store.set_wasi(wasi)
    start = linker.instantiate(store, wasmtime.Module(engine, module)).exports(store)["_start"]
    assert isinstance(start, wasmtime.Func)
    with contextlib.suppress(wasmtime.ExitTrap):
        start(store)
    return (folder / "stdout").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "text"), [("library.c", LIBRARY), ("standard.rs", RUST)])
def test_a_library_finds_what_wasmtime_would_give_it(
    engine: Any,
    deploy: Deploy,
    built: Callable[[str, str], bytes],
    tmp_path: Path,
    name: str,
    text: str,
) -> None:
    """stdio, argv, environment, waiting, time, chance; errnos where a system would be."""
    module = built(name, text)
    args, variables = ["one", "two words", "", "ünï"], {"MODE": "x=y", "EMPTY": ""}
    stdin = "word 2.5\nlonger than that\n\nlast, without an end"

    function = deploy(name.replace(".", "-"), module, args=args, variables=variables)
    answer = engine.invoke(function, stdin)

    assert answer.status_code == 200, answer.text
    expected = by_wasmtime(module, tmp_path, stdin, [function, *args], variables)
    assert answer.json().splitlines() == expected.splitlines()


@pytest.mark.parametrize(
    ("descriptor", "text", "words"),
    [
        (2, "starting\nfatal: no such device\n", "fatal: no such device"),
        (2, "starting\nhalf a line", "half a line"),
        (2, "what happened\n\n  \n", "what happened"),
        (2, GO_PANIC, "panic: boom"),
        (2, RUST_PANIC, "thread 'main' panicked at 'boom', src/main.rs:2:5"),
        (2, RUST_PANIC_NOW, "thread 'main' (1) panicked at src/main.rs:2:5: boom"),
        (2, SCRIPT_ERROR, "Error: no such thing"),
        (1, "a result\nand why it is none\n", "and why it is none"),
    ],
)
def test_its_last_words_are_told(
    engine: Any, say: str, descriptor: int, text: str, words: str
) -> None:
    """Those that say why: a panic's first line, not its stack; stdout, if stderr has nothing."""
    problem = engine.invoke(say, f"{descriptor} 3\n{text}").json()

    assert problem["error"]["name"] == "ExitError"
    assert problem["error"]["message"] == f"exit status 3: {words}"


@pytest.mark.parametrize("status", [1, 255, 256, -1])
def test_an_exit_status_is_told_as_it_was_given(engine: Any, say: str, status: int) -> None:
    """Of 32 bits with a sign, as `exit` takes it; who said nothing has no last words."""
    problem = engine.invoke(say, f"1 {status}\n").json()

    assert problem["error"]["message"] == f"exit status {status}"


def test_a_line_without_end_is_logged_once(engine: Any, say: str) -> None:
    """It is the last line of the log too."""
    engine.invoke(say, "2 3\none\nhalf")

    run = engine.executions(function=say, limit=1)[0]
    items = engine.ok("GET", f"/v1/executions/{run['id']}/logs")["items"]
    assert [item["msg"] for item in items] == ["one", "half"]


@pytest.mark.slow
def test_a_program_may_go_byte_by_byte(
    engine: Any, deploy: Deploy, built: Callable[[str, str], bytes]
) -> None:
    """Ten thousand bytes and twenty thousand calls stay within two seconds of CPU."""
    function = deploy("copy", built("copy.c", COPY), limits={"cpu_ms": 2_000})
    text = "äöü\n" * 1_400

    answer = engine.invoke(function, text)

    assert answer.status_code == 200, answer.text
    assert answer.json() == text


def test_a_call_that_fails_has_done_nothing(
    engine: Any, deploy: Deploy, built: Callable[[str, str], bytes]
) -> None:
    """A vector outside of memory is EFAULT (21): nothing is read, and nothing written, of any."""
    function = deploy("vectors", built("vectors.c", VECTORS))

    answer = engine.invoke(function, "abcd")

    assert answer.json() == "21 21, then 0: 2 of ab"


@pytest.mark.parametrize(
    ("imported", "told"),
    [
        ('"a" "b"', ["a.b (nothing -> nothing)", "STANDALONE_WASM"]),
        ('"env" "_embind_register_void"', ["env._embind_register_void", "STANDALONE_WASM"]),
        ('"__wbindgen_placeholder__" "__wbindgen_throw"', ["wasm-bindgen", "wasm32-wasip1"]),
        ('"wasi_unstable" "fd_write"', ["early WASI", "wasm32-wasip1"]),
        ('"extism:host/env" "input_length"', ["Extism", "`alloc` and `handle`"]),
    ],
)
def test_a_module_for_another_host_is_told_a_way(imported: str, told: list[str]) -> None:
    """What is missing is named once, however often it is imported, and what to build instead."""
    twice = f"(import {imported} (func))" * 2
    module = wat_module(f'(module {twice} (memory (export "memory") 1) (func (export "_start")))')

    with pytest.raises(LoadFailed) as refused:
        compile_module(BuildHeader(), module)

    message = refused.value.error.message
    assert all(text in message for text in told), message
    _, space, _, name, _ = imported.split('"')
    assert message.count(f"{space}.{name} (") == 1
