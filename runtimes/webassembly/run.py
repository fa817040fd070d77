"""One run of a WebAssembly guest: what it was given, what it may ask, what it has said so far.

Path:   guest -> program -> Wasmtime -> the guest's imports -> here -> WASI, log, host calls
Never:  believes a pointer, a length or a text of the guest's; knows threads.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from runtimes.contract import LOG, MIB
from runtimes.webassembly.abi import SIGNATURES, WASI, Kind, Shape
from runtimes.webassembly.guest_json import NotJson, checked_json
from runtimes.webassembly.wasi import Wasi, environment_of
from runtimes.webassembly.wasmtime_unsafe import U32, Instance, OutOfBounds, Values

REQUEST_BYTES_MAX: Final = 4 * MIB  # of one host call, as in JavaScript
LINE_CUT: Final = "… [line cut: log limit]"
WORDS_CHARS_MAX: Final = 500  # of what a guest said, beside its exit status
# How Go, Rust, Zig and Swift begin to tell of a panic: what they write after it says less.
_PANIC: Final = re.compile(r"(thread .*)?panic(ked at|:) |fatal error: ", re.IGNORECASE)
_LEVELS: Final = ("debug", "info", "warn", "error")
_U64: Final = 0xFFFF_FFFF_FFFF_FFFF
_encode: Final = msgspec.json.encode

Ask = Callable[[str, bytes], tuple[bool, bytes]]
"""(operation, arguments as JSON) -> (ok, answer as JSON); waits for the engine."""


class Start(msgspec.Struct, array_like=True, tag=0):
    """What the engine says to have a run started: see `runtimes.contract.START`."""

    run: int
    handler: str
    now_ms: int
    seed: str
    cpu_ms: int
    output_bytes: int
    log_lines: int
    log_bytes: int
    context: tuple[str, int, int, int, str, int]
    input: msgspec.Raw


class OutputTooLarge(Exception):
    """The guest's: its result passes the limit."""

    def __init__(self, used: int) -> None:
        self.used = used
        super().__init__(f"{used} bytes")


class Halted(Exception):
    """The run has been stopped while an import of its was at work, where no epoch reaches."""


class BadImport(Exception):
    """The guest's: it called an import in a way that cannot be answered; its run ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What all runs of a version share."""

    name: str  # the function's
    arguments: tuple[str, ...]
    variables: dict[str, str]
    secrets: dict[str, str]


class _Request(msgspec.Struct):
    operation: str
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


_REQUEST: Final = msgspec.json.Decoder(_Request)


@dataclass(slots=True, eq=False)
class GuestRun:
    """Implements `wasmtime_unsafe.Imports` and `wasi.World`."""

    start: Start
    shape: Shape
    bound: Bound
    stdin: bytes
    stdin_at: int = 0
    now_ms: int = 0
    starting: bool = True  # the module's own start: nothing can be asked of the engine
    instance: Instance | None = None
    ask: Ask = lambda _operation, _arguments: (False, b"null")
    is_stopped: Callable[[], bool] = lambda: False
    stdout: bytearray = field(default_factory=bytearray)
    _said: str = ""
    _panic: str = ""
    _answering: bool = False
    _chance_count: int = 0
    _stderr: bytearray = field(default_factory=bytearray)
    _log: list[tuple[str, int, str]] = field(default_factory=list)
    _logged: int = 0
    _log_units: int = 0
    _dropped: int = 0
    _wasi: dict[str, tuple[Callable[..., int], str]] = field(default_factory=dict)
    _wasi_state: Wasi | None = None

    def __post_init__(self) -> None:
        self.now_ms = self.start.now_ms

    @property
    def _alloc_place(self) -> int:
        return 0 if self.shape.kind is Kind.CORE else 1  # see program.Program

    # wasmtime_unsafe.Imports

    def call(self, name: str, values: Values) -> None:
        if name == "call":
            values[0].i64 = _signed(self._host_call(values[0].i32 & U32, values[1].i32 & U32))
        elif name == "log":
            level = values[0].i32
            data = self._memory("engine.log", values[1].i32 & U32, values[2].i32 & U32)
            text = data.decode("utf-8", "replace")
            self.log(_LEVELS[level] if 0 <= level < len(_LEVELS) else "info", text)
        else:
            function, letters = self._wasi.get(name) or self._wasi_function(name)
            arguments = [
                values[n].i32 & U32 if letter == "i" else values[n].i64 & _U64
                for n, letter in enumerate(letters)
            ]
            values[0].i64 = function(*arguments)

    def _wasi_function(self, name: str) -> tuple[Callable[..., int], str]:
        if self._wasi_state is None:
            self._wasi_state = Wasi(self)
        found = self._wasi_state.function(name), SIGNATURES[WASI, name][0]
        self._wasi[name] = found
        return found

    def _host_call(self, pointer: int, length: int) -> int:
        """Answer `engine.call`: return where the answer lies, as ptr<<32|len."""
        if self.starting:
            raise BadImport("engine.call is not possible while the module starts")
        if self._answering:
            raise BadImport(f"engine.call is not possible in `{self.shape.alloc}`")
        if length > REQUEST_BYTES_MAX:
            answer = _refusal(
                "RangeError",
                f"a host call has at most {REQUEST_BYTES_MAX} bytes; this one has {length}",
                "payload_too_large",
            )
        else:
            answer = self._answer(self._memory("engine.call", pointer, length))
        assert self.instance is not None
        self._answering = True
        at = self.instance.call(self._alloc_place, len(answer)) & U32
        self._answering = False
        try:
            self.instance.write(at, answer)
        except OutOfBounds as error:
            raise BadImport(f"what `{self.shape.alloc}` returned is no room: {error}") from None
        return at << 32 | len(answer)

    def _answer(self, text: bytes) -> bytes:
        try:
            request = _REQUEST.decode(checked_json(text))
        except (NotJson, msgspec.MsgspecError) as error:
            message = f'a host call is {{"operation": text, "arguments": {{...}}}}: {error}'
            return _refusal("TypeError", message, "invalid_arguments")
        if request.operation == "env":
            ok, value = True, _encode(self.bound.variables | self.bound.secrets)
        elif request.operation == "context":
            ok, value = True, self._context()
        else:
            ok, value = self.ask(request.operation, bytes(request.arguments))
        return b'{"ok":true,"value":%b}' % value if ok else b'{"ok":false,"error":%b}' % value

    def _context(self) -> bytes:
        execution_id, version, attempt, deadline, root_id, depth = self.start.context
        return _encode(
            {
                "handler": self.start.handler,
                "executionId": execution_id,
                "functionVersion": version,
                "attempt": attempt,
                "deadline": deadline,
                "rootId": root_id,
                "depth": depth,
                "now": self.now_ms,
            }
        )

    def _memory(self, who: str, pointer: int, length: int) -> bytes:
        try:
            return self.read(pointer, length)
        except OutOfBounds as error:
            raise BadImport(f"{who}: {error}") from None

    # wasi.World

    @property
    def arguments(self) -> tuple[bytes, ...]:
        return tuple(text.encode() for text in (self.bound.name, *self.bound.arguments))

    @property
    def environment(self) -> tuple[bytes, ...]:
        return environment_of(self.bound.variables)

    def read(self, pointer: int, length: int) -> bytes:
        assert self.instance is not None
        return self.instance.read(pointer, length)

    def write(self, pointer: int, data: bytes) -> None:
        assert self.instance is not None
        self.instance.write(pointer, data)

    def stream(self, descriptor: int, data: bytes) -> None:
        """Take stdout of a command as its result; everything else is log."""
        if descriptor == 1 and self.shape.kind is Kind.COMMAND:
            self.stdout += data
            if len(self.stdout) > self.start.output_bytes:
                raise OutputTooLarge(len(self.stdout))
            return
        self._stderr += data
        if b"\n" in data:
            *lines, rest = self._stderr.split(b"\n")
            for line in lines:
                self.log("info", line.decode("utf-8", "replace"))
            self._stderr = rest
        elif len(self._stderr) > self.start.log_bytes:
            self._flush_stderr()

    def now_ns(self) -> int:
        return self.now_ms * 1_000_000

    def chance(self, count: int) -> bytes:
        """Return the next bytes of the run's own randomness: SHAKE-256 of its seed and a count.

        Raises:
            Halted: the run has been stopped; a guest can ask for any number of bytes at once.
        """
        if self.is_stopped():
            raise Halted
        self._chance_count += 1
        text = f"{self.start.seed}:{self._chance_count}"
        return hashlib.shake_256(text.encode()).digest(count)

    def sleep(self, wait_ns: int) -> bool:
        if self.starting:
            return False
        self.ask("timer", _encode({"ms": wait_ns / 1e6}))
        return True

    # The log.

    def log(self, level: str, text: str) -> None:
        self._note(text)
        room = self.start.log_bytes - self._log_units
        if self._logged >= self.start.log_lines or room <= 0:
            self._dropped += 1
            return
        if len(text) > room:
            text = text[:room] + LINE_CUT
        self._logged += 1
        self._log_units += len(text) + 1
        self._log.append((level, self.now_ms, text))

    def log_message(self, *, last: bool) -> bytes | None:
        """Return what was logged since the last time, as a message; None: nothing."""
        if last:
            self._flush_stderr()
        dropped = self._dropped if last else 0
        if not self._log and not dropped:
            return None
        message = _encode([LOG, self.start.run, self._log, dropped])
        self._log = []
        return message

    def last_words(self) -> str:
        """Return why the guest gave up, as far as it said so; "" if it said nothing at all.

        That is a panic's message, or the last line of stderr that does not just add to the one
        before, as those of a stack do; or of stdout, if it wrote to nothing else.
        """
        self._flush_stderr()
        if not self._said:
            self._note(self.stdout[-WORDS_CHARS_MAX:].decode("utf-8", "replace"))
        return self._panic or self._said

    def _note(self, text: str) -> None:
        first, last = text.lstrip().partition("\n")[0], text.rstrip().rpartition("\n")[2]
        if not last:
            return
        if not self._said or not last[0].isspace():
            self._said = last.lstrip()[:WORDS_CHARS_MAX]
        words = first.rstrip()[:WORDS_CHARS_MAX]
        if self._panic.endswith(":"):  # Rust since 1.73 has the message on a line of its own
            self._panic += f" {words}"
        elif not self._panic and _PANIC.match(words):
            self._panic = words

    def unsent_log(self) -> list[str]:
        """Return the lines, each `level text`, that the end of the cell would lose."""
        return [f"{level} {text}" for level, _, text in tuple(self._log)]

    def _flush_stderr(self) -> None:
        if self._stderr:
            self.log("info", self._stderr.decode("utf-8", "replace"))
            self._stderr.clear()


def _refusal(name: str, message: str, code: str) -> bytes:
    error = _encode({"name": name, "message": message[:1000], "code": code})
    return b'{"ok":false,"error":%b}' % error


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
