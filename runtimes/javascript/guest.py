"""One function version in V8: loads its program, takes batches, is watched.

Path:   sandbox.child -> here -> v8_unsafe
Never:  does I/O after import; believes what the guest's code says about itself.
"""

import re
import time
from collections.abc import Callable
from importlib.resources import files
from typing import Any, Final

import msgspec

from runtimes.contract import MIB, GuestError, LimitHit, LoadFailed, Outcome, Stop
from runtimes.javascript.compile import CompileError, Program, compile_program
from runtimes.javascript.v8_unsafe import Isolate, Mark, V8Error, initialise

LOAD_CPU_MS: Final = 2_000  # top-level code of one version
_HEAP_DEFAULT_BYTES: Final = 64 * MIB

__all__ = ["build", "initialise", "new_guest"]


def _joined_prelude() -> str:
    here = files("runtimes.javascript")
    sources = []
    for part in ("prelude", "classic"):
        names = sorted(p.name for p in (here / part).iterdir() if p.name.endswith(".js"))
        sources += [(here / part / name).read_text("utf-8") for name in names]
    body = "\n".join(sources)
    tail = "return { pump, take, define, ready, shared };"
    return f"(function (emit) {{ 'use strict';\n{body}\n{tail} }})\n//# sourceURL=cloudcode:prelude"


PRELUDE: Final = _joined_prelude()


class BuildHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What stands before the sources, which are JSON {name: source}."""

    main: str


class LoadHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What stands before the program, which is JSON of `Program`."""

    bindings: dict[str, Any]  # {variables: {..}, secrets: {..}, connections: {name: {kind, ..}}}
    memory_mb: int
    now_ms: int


class Guest:
    """One isolate and the program in it."""

    def __init__(
        self,
        on_output: Callable[["Guest", int, bytes], None],
        on_broken: Callable[["Guest", str], None],
        tick: Callable[[], None],
    ) -> None:
        self._on_output = on_output
        self._on_broken = on_broken
        self.busy = False
        self.loading = False
        self._heap_mb = _HEAP_DEFAULT_BYTES // MIB
        self._cpu_seen_ns = 0
        self._segment: tuple[int, int] = (0, 0)  # the mark's changes and the CPU then
        self._isolate = Isolate(PRELUDE, _HEAP_DEFAULT_BYTES, self._output, self._broken, tick)

    def load(self, header: bytes, body: bytes) -> bytes:
        """Evaluate the program and return JSON {handlers, log}.

        Raises:
            LoadFailed: it does not parse, or its top-level code throws.
        """
        isolate = self._isolate
        request = msgspec.json.decode(header, type=LoadHeader)
        program = msgspec.json.decode(body, type=Program)
        self._heap_mb = request.memory_mb
        isolate.limit_heap(request.memory_mb * MIB)
        self.loading = True
        self._segment = (-1, isolate.cpu_ns())
        evaluated = program.main
        try:
            for file in program.files:
                evaluated = file.name
                function = isolate.evaluate(f"{file.code}\n//# sourceURL={file.name}")
                if file.kind == "module":
                    named = msgspec.json.encode({"name": file.name, "imports": file.imports})
                    isolate.define(named.decode(), function)
            start = msgspec.json.encode(
                {"main": program.main, "bindings": request.bindings, "now": request.now_ms}
            )
            evaluated = program.main
            return isolate.ready(start.decode()).encode()
        except V8Error as error:
            raise LoadFailed(locate(error, program, evaluated)) from error
        finally:
            self.loading = False
            self._cpu_seen_ns = isolate.cpu_ns()

    def post(self, batch: bytes) -> None:
        self.busy = True
        self._isolate.post(batch)

    def watch(self) -> Stop | None:
        """Say whether what is on the thread now has used up its CPU or its heap."""
        isolate = self._isolate
        mark = isolate.mark()
        if isolate.out_of_memory():
            return self.memory_stop(mark)
        used_ns = isolate.cpu_ns()
        if not self.loading and mark.changes != self._segment[0]:
            self._segment = (mark.changes, used_ns)
            return None
        used_ms = (used_ns - self._segment[1]) // 1_000_000
        # Of no run: the file itself, or what it left behind that runs before the first run can.
        limit_ms = LOAD_CPU_MS if self.loading or mark.run == 0 else mark.cpu_ms
        if used_ms <= limit_ms:
            return None
        return Stop(
            run=mark.run,
            outcome=Outcome.CPU_EXCEEDED,
            limit=LimitHit(name="cpu_ms", value=limit_ms, used=used_ms),
            log=isolate.unsent_log(),
        )

    def memory_stop(self, mark: Mark | None = None) -> Stop:
        mark = mark or self._isolate.mark()
        return Stop(
            run=mark.run,
            outcome=Outcome.MEMORY_EXCEEDED,
            limit=LimitHit(name="memory_mb", value=self._heap_mb, used=self._heap_mb),
            log=self._isolate.unsent_log(),
        )

    def crash_stop(self) -> Stop:
        mark = self._isolate.mark()
        return Stop(
            run=mark.run, outcome=Outcome.CRASHED, limit=None, log=self._isolate.unsent_log()
        )

    def relieve(self) -> None:
        self._isolate.collect_garbage()

    def close(self) -> None:
        self._isolate.close()

    def _output(self, text: bytes) -> None:
        used_ns = time.thread_time_ns()  # on V8's thread: its own clock
        spent_ns, self._cpu_seen_ns = used_ns - self._cpu_seen_ns, used_ns
        if self._isolate.out_of_memory():
            # V8 dropped what ran then, and its microtasks, before the watchdog could look.
            self._broken("memory")
            return
        self.busy = False
        self._on_output(self, spent_ns, text)

    def _broken(self, kind: str) -> None:
        self._on_broken(self, kind)


new_guest = Guest


def build(header: bytes, body: bytes) -> bytes:
    """Compile an author's files and return the program, JSON.

    Raises:
        LoadFailed: a file does not compile; names file, line and column.
    """
    main = msgspec.json.decode(header, type=BuildHeader).main
    sources = msgspec.json.decode(body, type=dict[str, str])
    try:
        return msgspec.json.encode(compile_program(sources, main))
    except CompileError as error:
        raise LoadFailed(
            GuestError(
                name="SyntaxError",
                message=error.message,
                file=error.file,
                line=error.line,
                column=error.column,
            )
        ) from error


_HEAD: Final = re.compile(r"^(?P<file>[^\n]*?):(?P<line>\d+): (?P<text>[^\n]*)")
_FRAME: Final = re.compile(r"(?P<file>[^\s()]+):(?P<line>\d+):(?P<column>\d+)\)?$")


def locate(error: V8Error, program: Program, evaluated: str) -> GuestError:
    """Read file, line and column out of V8's text.

    V8 says `main.js:3: SyntaxError: Unexpected token`, the source line, a line of carets, a blank
    line and the stack.

    Args:
        error: what V8 said.
        program: what was loaded.
        evaluated: the file being evaluated: a file that does not parse has no name yet for V8.
    """
    if error.kind == "memory":
        return GuestError(name="RangeError", message="out of memory while the file was loaded")
    head = _HEAD.match(error.text)
    if head is None:
        return GuestError(name="Error", message=error.text.split("\n", 1)[0][:4000])
    name, _, message = head["text"].removeprefix("Uncaught ").partition(": ")
    rows = error.text.split("\n")
    caret = next((row for row in rows[1:] if row.strip() and not row.strip(" \t^")), "")
    file, line = head["file"], int(head["line"])
    column = caret.find("^") + 1 if caret else 0
    frames = [_FRAME.search(row) for row in rows if row.startswith("    at ")]
    known = {compiled.name: compiled for compiled in program.files}
    if error.kind == "parse":
        file = evaluated
    elif file not in known:
        frame = next((f for f in frames if f is not None and f["file"] in known), None)
        if frame is not None:
            file, line, column = frame["file"], int(frame["line"]), int(frame["column"])
    if file in known and line == 1:
        column = max(0, column - known[file].prefix_columns)
    stack = "\n".join(row for row in rows if row.startswith("    at ") and "cloudcode:" not in row)
    return GuestError(
        name=name[:200] if message else "Error",
        message=(message or name)[:4000],
        stack=stack[:8000],
        file=file if file in known else evaluated,
        line=line,
        column=column,
    )
