"""WASI as a guest meets it: layouts and errnos of preview 1, and nothing of a system behind them.

Most tests call the functions themselves, on the memory of a real instance; the rest is a C program.
"""

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runtimes.webassembly.abi import SIGNATURES, WASI
from runtimes.webassembly.program import (
    Bindings,
    BuildHeader,
    LoadHeader,
    Options,
    Program,
    compile_module,
)
from runtimes.webassembly.run import GuestRun, Start
from runtimes.webassembly.wasi import Exit, Wasi
from tests.standins.wasm_toolchains import c_module, wat_module

# <wasi/api.h> of wasi-libc
SUCCESS, BADF, FAULT, INVAL, NOSYS = 0, 8, 21, 28, 52
NOTDIR, NOTSOCK, NOTSUP, SPIPE, LAST = 54, 57, 58, 70, 76
FAR = 0xFFFF_FFFF
PAGE = 65_536
NOW_MS = 1_288_310_400_123
SEED = "00112233445566ff"
NO_PATHS = [name for (space, name) in SIGNATURES if space == WASI and name.startswith("path_")]
SOCKETS = [name for (space, name) in SIGNATURES if space == WASI and name.startswith("sock_")]
EMPTY = """
(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1 4)
  (func (export "_start")))
"""


class Guest:
    """A run whose instance has one page of memory, and its WASI."""

    def __init__(
        self, program: bytes, given: bytes, *, seed: str, name: str, args: tuple[str, ...],
        variables: dict[str, str],
    ) -> None:  # fmt: skip
        self.asked: list[tuple[str, Any]] = []
        start = Start(
            run=1, handler="default", now_ms=NOW_MS, seed=seed, cpu_ms=1_000, output_bytes=1 << 20,
            log_lines=256, log_bytes=65_536, context=("exe_1", 1, 1, NOW_MS + 9_000, "exe_1", 0),
            input=msgspec.Raw(given),
        )  # fmt: skip
        header = LoadHeader(
            memory_mb=8, now_ms=NOW_MS, name=name, options=Options(args=args),
            bindings=Bindings(variables=variables, secrets={"SECRET": "s3cret"}),
        )  # fmt: skip
        self.program = Program(header, program)
        self.run: GuestRun = self.program.new_run(start)
        self.run.ask = self._ask
        self.wasi = Wasi(self.run)

    def _ask(self, operation: str, arguments: bytes) -> tuple[bool, bytes]:
        self.asked.append((operation, json.loads(arguments)))
        self.run.now_ms += int(json.loads(arguments).get("ms", 0))
        return True, b"null"

    def call(self, name: str, *arguments: int) -> int:
        return self.wasi.function(name)(*arguments)

    def put(self, at: int, layout: str, *values: Any) -> None:
        self.run.write(at, struct.pack(f"<{layout}", *values))

    def look(self, at: int, layout: str) -> tuple[Any, ...]:
        return struct.unpack(f"<{layout}", self.run.read(at, struct.calcsize(f"<{layout}")))

    def vectors(self, at: int, *parts: tuple[int, int]) -> None:
        for number, part in enumerate(parts):
            self.put(at + 8 * number, "II", *part)

    def log(self) -> list[str]:
        message = self.run.log_message(last=True)
        return [] if message is None else [line[2] for line in json.loads(message)[2]]


Make = Callable[..., Guest]


@pytest.fixture(scope="module")
def empty() -> bytes:
    return compile_module(BuildHeader(), wat_module(EMPTY))


@pytest.fixture
def make(empty: bytes) -> Iterator[Make]:
    """Makes guests that have run, and done nothing."""
    made: list[Guest] = []

    def one(
        given: bytes = b"null", *, program: bytes = b"", seed: str = SEED, name: str = "fn",
        args: tuple[str, ...] = (), **variables: str,
    ) -> Guest:  # fmt: skip
        guest = Guest(program or empty, given, seed=seed, name=name, args=args, variables=variables)
        made.append(guest)
        if not program:
            guest.program.run(guest.run)
        return guest

    yield one
    for guest in made:
        guest.program.release(guest.run, succeeded=False)


# Arguments and environment.


@pytest.mark.parametrize("args", [(), ("",), ("-", "-c"), ("ü 😀", "", "x" * 8_000)])
def test_arguments_have_their_layout(make: Make, args: tuple[str, ...]) -> None:
    """The function's name, then the version's: pointers, and texts that end with a NUL."""
    guest = make(args=args)
    texts = [text.encode() + b"\0" for text in ("fn", *args)]

    sizes = guest.call("args_sizes_get", 0, 4)
    got = guest.call("args_get", 16, 1_024)

    assert (sizes, got) == (SUCCESS, SUCCESS)
    assert guest.look(0, "II") == (len(texts), len(b"".join(texts)))
    pointers = guest.look(16, f"{len(texts)}I")
    placed = zip(pointers, texts, strict=True)
    assert [guest.run.read(at, len(text)) for at, text in placed] == texts
    assert guest.run.read(1_024, len(b"".join(texts))) == b"".join(texts)


@pytest.mark.parametrize(
    "variables", [{}, {"A": ""}, {"WORD": "grüße 😀", "B": "a=b", "C": "two\nlines"}]
)
def test_the_environment_has_its_layout(make: Make, variables: dict[str, str]) -> None:
    """NAME=text of each variable; no secret, and nothing of the process that all this runs in."""
    guest = make(**variables)
    texts = [f"{name}={text}\0".encode() for name, text in variables.items()]

    sizes = guest.call("environ_sizes_get", 0, 4)
    got = guest.call("environ_get", 16, 1_024)

    assert (sizes, got) == (SUCCESS, SUCCESS)
    assert guest.look(0, "II") == (len(texts), len(b"".join(texts)))
    pointers = guest.look(16, f"{len(texts)}I")
    placed = zip(pointers, texts, strict=True)
    assert [guest.run.read(at, len(text)) for at, text in placed] == texts


def test_a_variable_ends_at_its_nul(make: Make) -> None:
    """A C text cannot hold one: the rest must not pass for another variable."""
    guest = make(A="x\0EVIL=1", B="y")

    guest.call("environ_sizes_get", 0, 4)
    guest.call("environ_get", 16, 64)

    assert guest.look(0, "II") == (2, 8)
    assert guest.run.read(64, 8) == b"A=x\0B=y\0"


# Time and chance.


def test_all_clocks_tell_the_time_of_the_run(make: Make) -> None:
    """In nanoseconds, to the millisecond; it does not move by itself."""
    guest = make()

    errnos = [guest.call("clock_time_get", clock, 0, 8 * clock) for clock in range(4)]
    resolution = guest.call("clock_res_get", 1, 64)

    assert errnos == [SUCCESS] * 4
    assert guest.look(0, "4Q") == (NOW_MS * 1_000_000,) * 4
    assert (resolution, *guest.look(64, "Q")) == (SUCCESS, 1_000_000)
    assert guest.call("clock_time_get", 4, 0, 0) == INVAL
    assert guest.call("clock_res_get", 4, 0) == INVAL


def test_chance_is_of_the_seed(make: Make) -> None:
    """The same calls give the same bytes; another seed, and the next call, give others."""

    def two_of(seed: str) -> tuple[bytes, bytes]:
        guest = make(seed=seed)
        assert guest.call("random_get", 1_000, 32) == guest.call("random_get", 2_000, 32) == SUCCESS
        return guest.run.read(1_000, 32), guest.run.read(2_000, 32)

    one, same, other = (two_of(seed) for seed in (SEED, SEED, "0" * 16))

    assert one == same
    assert len({*one, *other}) == 4


def test_chance_fills_what_was_asked_and_no_more(make: Make) -> None:
    """Up to the last byte of memory; nothing is written when not all of it is there."""
    guest = make()

    assert guest.call("random_get", PAGE - 100, 101) == FAULT
    assert guest.run.read(PAGE - 100, 100) == bytes(100)
    assert guest.call("random_get", FAR, 0) == SUCCESS
    assert guest.call("random_get", 10, PAGE - 10) == SUCCESS
    assert guest.run.read(0, 10) == bytes(10)
    assert len(set(guest.run.read(10, PAGE - 10))) == 256
    assert any(guest.run.read(PAGE - 16, 16))


# Streams.


def test_stdin_is_read_to_its_end(make: Make) -> None:
    """Scattered over the vectors, and 0 bytes at the end, as often as one asks."""
    guest = make(b'"hello world"')
    guest.vectors(0, (1_000, 4), (2_000, 0), (3_000, 6))

    reads = []
    for _ in range(4):
        errno = guest.call("fd_read", 0, 0, 3, 500)
        reads.append((errno, *guest.look(500, "I")))

    assert reads == [(SUCCESS, 10), (SUCCESS, 3), (SUCCESS, 0), (SUCCESS, 0)]
    assert guest.run.read(1_000, 4) == b'ld"l'
    assert guest.run.read(3_000, 6) == b"lo wor"
    assert guest.run.read(2_000, 1) == b"\0"


def test_stdout_is_the_result(make: Make) -> None:
    """Gathered from the vectors; it is not the log."""
    guest = make()
    guest.run.write(1_000, b"onetwo")
    guest.vectors(0, (1_000, 3), (9, 0), (1_003, 3))

    errno = guest.call("fd_write", 1, 0, 3, 500)

    assert (errno, *guest.look(500, "I")) == (SUCCESS, 6)
    assert bytes(guest.run.stdout) == b"onetwo"
    assert guest.log() == []


def test_stderr_is_the_log(make: Make) -> None:
    """A line of it is a line of the log, however it was written; what is no text is mended."""
    guest = make()
    texts = [b"a", b"b\nc\n\nd", b"\xff", b" \xc3", b"\xbc\n", b"end"]

    for text in texts:
        guest.run.write(1_000, text)
        guest.vectors(0, (1_000, len(text)))
        assert guest.call("fd_write", 2, 0, 1, 500) == SUCCESS

    assert guest.log() == ["ab", "c", "", "d\ufffd ü", "end"]
    assert bytes(guest.run.stdout) == b""


def test_one_write_has_an_end(make: Make) -> None:
    """It takes 64 KiB, and says so: the guest writes the rest with the next one."""
    guest = make()
    guest.vectors(0, (1_000, 40_000), (1_000, 40_000), (1_000, 40_000))

    errno = guest.call("fd_write", 1, 0, 3, 500)

    assert (errno, *guest.look(500, "I")) == (SUCCESS, 65_536)
    assert len(guest.run.stdout) == 65_536


@pytest.mark.parametrize("name", ["fd_read", "fd_write"])
def test_vectors_are_counted(make: Make, name: str) -> None:
    """None is no error; 1,024 are the most, as on Linux."""
    guest = make()
    stream = 0 if name == "fd_read" else 1

    assert guest.call(name, stream, FAR - 7, 0, 500) == SUCCESS
    assert guest.look(500, "I") == (0,)
    assert guest.call(name, stream, 1_000, 1_024, 500) == SUCCESS
    assert guest.call(name, stream, 1_000, 1_025, 500) == INVAL
    assert guest.call(name, stream, 1_000, FAR, 500) == INVAL


@pytest.mark.parametrize(
    ("name", "streams"), [("fd_read", (1, 2, 3, FAR)), ("fd_write", (0, 3, FAR))]
)
def test_streams_have_one_direction(make: Make, name: str, streams: tuple[int, ...]) -> None:
    """And there are three."""
    guest = make()
    guest.vectors(0, (1_000, 1))

    assert [guest.call(name, stream, 0, 1, 500) for stream in streams] == [BADF] * len(streams)


def test_what_is_closed_is_gone(make: Make) -> None:
    """For every function, and once only; the other streams stay."""
    guest = make()
    guest.vectors(0, (1_000, 1))

    closed = [guest.call("fd_close", stream) for stream in (2, 0, 2, 0, 3)]

    assert closed == [SUCCESS, SUCCESS, BADF, BADF, BADF]
    assert guest.call("fd_read", 0, 0, 1, 500) == BADF
    assert guest.call("fd_write", 2, 0, 1, 500) == BADF
    assert guest.call("fd_fdstat_get", 2, 500) == BADF
    assert guest.call("fd_filestat_get", 0, 500) == BADF
    assert guest.call("fd_sync", 2) == BADF
    assert guest.call("fd_write", 1, 0, 1, 500) == SUCCESS


def test_streams_say_what_they_are(make: Make) -> None:
    """Of no known type, without flags, readable and writable; no file of any size."""
    guest = make()
    guest.run.write(0, b"\xff" * 200)

    for stream in range(3):
        assert guest.call("fd_fdstat_get", stream, 0) == SUCCESS
        assert guest.call("fd_filestat_get", stream, 100) == SUCCESS
    kind, flags, rights, inherited = guest.look(0, "BxHxxxxQQ")
    device, number, file_kind, links, size, *times = guest.look(100, "QQBxxxxxxxQQQQQ")

    assert (kind, flags, inherited) == (0, 0, 0)
    assert rights & 1 << 1  # fd_read
    assert rights & 1 << 6  # fd_write
    assert not rights & 1 << 2  # fd_seek
    assert (device, number, file_kind, links, size, times) == (0, 2, 0, 1, 0, [0, 0, 0])
    assert guest.run.read(24, 1) == b"\xff"
    assert guest.run.read(164, 1) == b"\xff"


@pytest.mark.parametrize("name", ["fd_seek", "fd_tell", "fd_pread", "fd_pwrite"])
def test_streams_have_no_place(make: Make, name: str) -> None:
    """As with a pipe."""
    guest = make()

    assert [guest.call(name, stream, 0, 0, 0, 0) for stream in (0, 1, 2, 3)] == [SPIPE] * 3 + [BADF]


# What is not there.


@pytest.mark.parametrize("name", NO_PATHS)
def test_no_file_can_be_reached(make: Make, name: str) -> None:
    """No descriptor is a directory, and there are no others than the three streams."""
    guest = make()
    guest.run.write(0, b"/etc/passwd")
    count = len(SIGNATURES[WASI, name][0])

    errnos = {guest.call(name, descriptor, *[0] * (count - 1)) for descriptor in range(3)}
    others = {guest.call(name, descriptor, *[0] * (count - 1)) for descriptor in (3, 4, 1_000, FAR)}

    assert (errnos, others) == ({NOTDIR}, {BADF})


def test_no_directory_is_open_at_the_start(make: Make) -> None:
    """What libraries ask first: from 3 on, until it is EBADF."""
    guest = make()

    assert {guest.call("fd_prestat_get", descriptor, 0) for descriptor in range(10)} == {BADF}
    assert {guest.call("fd_prestat_dir_name", descriptor, 0, 9) for descriptor in range(10)} == {
        BADF
    }
    assert guest.call("fd_readdir", 0, 0, 9, 0, 0) == NOTDIR


@pytest.mark.parametrize("name", SOCKETS)
def test_no_stream_is_a_socket(make: Make, name: str) -> None:
    """And none can be made."""
    guest = make()
    count = len(SIGNATURES[WASI, name][0])

    assert guest.call(name, 0, *[0] * (count - 1)) == NOTSOCK
    assert guest.call(name, 3, *[0] * (count - 1)) == BADF


def test_a_guest_may_exit_but_not_raise_signals(make: Make) -> None:
    """Its status is kept, of all 32 bits; there are no signals, and nobody to yield to."""
    guest = make()

    for status in (0, 3, 255, FAR):
        with pytest.raises(Exit) as ended:
            guest.call("proc_exit", status)
        assert ended.value.status == status
    assert guest.call("proc_raise", 9) == NOSYS
    assert guest.call("sched_yield") == SUCCESS


@pytest.mark.parametrize("descriptor", [0, 1, 2, FAR])
@pytest.mark.parametrize("name", [name for space, name in SIGNATURES if space == WASI])
def test_no_pointer_is_believed(make: Make, name: str, descriptor: int) -> None:
    """With every other argument as large as it can be, each function answers an errno, or exits."""
    guest = make()
    wide = {"i": FAR, "I": 2**64 - 1}
    letters, _ = SIGNATURES[WASI, name]
    arguments = [wide[letter] for letter in letters]
    if name.startswith(("fd_", "path_", "sock_")):
        arguments[0] = descriptor

    try:
        errno = guest.call(name, *arguments)
    except Exit:
        errno = INVAL

    assert 0 <= errno <= LAST
    assert guest.run.read(0, PAGE) == bytes(PAGE)
    assert guest.asked == []


# Polling.

CLOCK, READ, WRITE = 0, 1, 2


def subscribe(guest: Guest, *subscriptions: tuple[int, int, int, int, int]) -> None:
    """Write (userdata, kind, clock or descriptor, timeout in ns, flags) at 0."""
    for number, (userdata, kind, what, timeout_ns, flags) in enumerate(subscriptions):
        row = (userdata, kind, what, timeout_ns, 0, flags)
        guest.put(48 * number, "QBxxxxxxxIxxxxQQHxxxxxx", *row)


def events(guest: Guest, count: int) -> list[tuple[int, ...]]:
    """Poll; return (userdata, errno, kind, bytes) of what is ready."""
    assert guest.call("poll_oneoff", 0, 5_000, count, 4_000) == SUCCESS
    (ready,) = guest.look(4_000, "I")
    return [guest.look(5_000 + 32 * n, "QHBxxxxxQ") for n in range(ready)]


def test_a_clock_is_waited_for_by_a_timer(make: Make) -> None:
    """One host call, by which the time moves."""
    guest = make()
    subscribe(guest, (77, CLOCK, 1, 250_000_000, 0))

    ready = events(guest, 1)

    assert ready == [(77, SUCCESS, CLOCK, 0)]
    assert guest.asked == [("timer", {"ms": 250})]
    guest.call("clock_time_get", 0, 0, 0)
    assert guest.look(0, "Q") == ((NOW_MS + 250) * 1_000_000,)


def test_the_earliest_clock_ends_the_wait(make: Make) -> None:
    """An absolute time counts from now; equal ones are ready together."""
    guest = make()
    at_ns = (NOW_MS + 40) * 1_000_000
    subscribe(
        guest, (1, CLOCK, 0, 90_000_000, 0), (2, CLOCK, 0, at_ns, 1), (3, CLOCK, 1, 40_000_000, 0)
    )

    ready = events(guest, 3)

    assert [event[0] for event in ready] == [2, 3]
    assert guest.asked == [("timer", {"ms": 40})]


def test_a_time_that_is_over_needs_no_wait(make: Make) -> None:
    """Neither does none at all."""
    guest = make()
    subscribe(guest, (1, CLOCK, 0, 5, 1), (2, CLOCK, 0, 0, 0))

    ready = events(guest, 2)

    assert [event[0] for event in ready] == [1, 2]
    assert guest.asked == []


def test_streams_are_always_ready(make: Make) -> None:
    """So no clock beside them is waited for; what is no stream, or closed, has its own error."""
    guest = make(b'"1234"')
    guest.call("fd_close", 2)
    subscribe(
        guest, (1, CLOCK, 0, 10**18, 0), (2, READ, 0, 0, 0), (3, WRITE, 1, 0, 0),
        (4, WRITE, 2, 0, 0), (5, READ, 9, 0, 0), (6, 200, 0, 0, 0),
    )  # fmt: skip

    ready = events(guest, 6)

    assert [event[:3] for event in ready] == [
        (2, SUCCESS, READ), (3, SUCCESS, WRITE), (4, BADF, WRITE), (5, BADF, READ), (6, INVAL, 200),
    ]  # fmt: skip
    assert ready[0][3] == 6
    assert guest.asked == []


@pytest.mark.parametrize("count", [0, 1_025, FAR])
def test_a_poll_has_a_size(make: Make, count: int) -> None:
    """Of nothing it is an error, as the document says; so is one of more than 1,024."""
    guest = make()

    assert guest.call("poll_oneoff", 0, 0, count, 0) == INVAL


def test_nothing_is_waited_for_while_the_module_starts(make: Make) -> None:
    """There is nobody to ask yet."""
    guest = make()
    guest.run.starting = True
    subscribe(guest, (1, CLOCK, 0, 1_000_000, 0))

    assert guest.call("poll_oneoff", 0, 5_000, 1, 4_000) == NOTSUP
    assert guest.asked == []


# A program in C.


@pytest.fixture(scope="module")
def looking() -> bytes:
    source = Path(__file__).parent / "wasi_guest.c"
    return compile_module(BuildHeader(), c_module(source))


def test_a_program_finds_a_world_without_a_system(make: Make, looking: bytes) -> None:
    """Through its C library: arguments, variables, stdin, time; no file, no terminal."""
    guest = make(b'"ten bytes"' * 4, program=looking, name="näme", args=("", "-c ü"), WORD="wörd")

    with pytest.raises(Exit) as ended:
        guest.program.run(guest.run)

    lines = guest.run.stdout.decode().splitlines()
    said = dict(line.rpartition(" ")[::2] for line in lines[5:])
    assert lines[:5] == ["argument näme", "argument ", "argument -c ü", "home none", "word wörd"]
    refused = ("open", "create", "stat", "rename", "unlink", "mkdir", "opendir", "seek")
    assert [name for name in refused if said[name] == "0"] == []
    assert said["terminal"] == "0"
    assert [said[name] for name in ("read", "read at the end", "read again")] == ["44", "0", "0"]
    assert (said["time"], said["slept"]) == (str(NOW_MS // 1000), "250")
    assert guest.asked == [("timer", {"ms": 250})]
    assert guest.log() == ["half a line, and its end", "last words"]
    assert (said["write to what is closed"], said["close again"]) == (str(BADF), str(BADF))
    assert ended.value.status == 7
