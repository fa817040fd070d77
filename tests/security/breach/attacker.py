"""A guest language in which programs that begin with `//! native` are native code of the cell.

Stands for a broken V8 or Wasmtime: such a program is Python, runs after the lockdown in the cell's
own process, with its socket, and is bound by nothing but the walls. All else is the real language.
"""

import os
import socket
import struct
from collections.abc import Callable
from typing import Any

import msgspec

from runtimes.contract import CALL, DONE, LOG, FromCell, Stop
from sandbox.child import Guest, Language
from sandbox.frames import frame
from tests.security.breach import native_unsafe

MARK = "//! native"


class Attacker:
    """Adapter of `sandbox.child.Language` over a real one."""

    def __init__(self, real: Language) -> None:
        self._real = real

    def initialise(self, *, hardened: bool) -> None:
        self._real.initialise(hardened=hardened)

    def build(self, header: bytes, body: bytes) -> bytes:
        main = msgspec.json.decode(header)["main"]
        source = msgspec.json.decode(body)[main] if body.startswith(b"{") else ""
        if not source.startswith(MARK):
            return self._real.build(header, body)
        return msgspec.json.encode({"native": source.removeprefix(MARK)})

    def new_guest(
        self,
        on_output: Callable[[Guest, int, bytes], None],
        on_broken: Callable[[Guest, str], None],
        tick: Callable[[], None],
    ) -> Guest:
        # Made at once, as ever: what a cell holds when it is ready decides how much it may have.
        return _Breached(self._real.new_guest(on_output, on_broken, tick), on_output)


class Wire:
    """The cell's socket, and the words that the engine understands, true or not."""

    def __init__(self, channel: socket.socket, isolate: int) -> None:
        self.fd = channel.fileno()
        self.isolate = isolate

    def raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self.fd, rest) :]

    def frame(self, kind: str, payload: bytes = b"", isolate: int | None = None) -> None:
        self.raw(frame(kind, self.isolate if isolate is None else isolate, payload))

    def output(
        self, *messages: Any, cpu_ns: int = 0, peak_kib: int = 0, isolate: int | None = None
    ) -> None:
        text = b"[" + b",\n".join(map(msgspec.json.encode, messages)) + b"]"  # a line each, as ever
        self.output_raw(text, cpu_ns=cpu_ns, peak_kib=peak_kib, isolate=isolate)

    def output_raw(
        self, text: bytes, cpu_ns: int = 0, peak_kib: int = 0, isolate: int | None = None
    ) -> None:
        self.frame(FromCell.OUTPUT, struct.pack(">QI", cpu_ns, peak_kib) + text, isolate)

    def done(self, run: int, value: Any) -> None:
        """End a run as an honest guest would."""
        self.output([DONE, run, "ok", value])

    def call(self, run: int, number: int, operation: str, arguments: Any) -> None:
        self.output([CALL, run, number, operation, arguments])

    def stopped(self, stop: Any) -> None:
        self.frame(FromCell.STOPPED, msgspec.json.encode(stop))


class _Breached:
    """A guest: native code if its program says so, else whatever the real language makes."""

    def __init__(self, real: Guest, on_output: Callable[[Guest, int, bytes], None]) -> None:
        self._real = real
        self._is_native = False
        self._cell: Any = getattr(on_output, "__self__", None)  # sandbox.child.Cell
        self._scope: dict[str, Any] = {}

    @property
    def busy(self) -> bool:
        return self._real.busy

    @property
    def loading(self) -> bool:
        return self._real.loading

    def load(self, header: bytes, program: bytes) -> bytes:
        native = msgspec.json.decode(program).get("native") if program[:1] == b"{" else None
        if native is None:
            self._cell._ids[id(self._real)] = self._cell._ids[id(self)]
            return self._real.load(header, program)
        self._is_native = True
        wire = Wire(self._cell._channel, self._cell._ids[id(self)])
        told = msgspec.json.decode(header)
        names = native_unsafe.words(cell=wire, sock=wire.fd, told=told, encode=msgspec.json.encode)
        if "attempt" in told:
            return msgspec.json.encode(native_unsafe.worth(native, names))
        self._scope = names | {"state": {}, "DONE": DONE, "CALL": CALL, "LOG": LOG}
        exec(native, self._scope)
        if told.get("trial") and "trial" in self._scope:
            self._scope["trial"]()
        if not told.get("trial") and "loaded" in self._scope:
            self._scope["loaded"]()
        return b'{"handlers":["main"],"log":[]}'

    def post(self, batch: bytes) -> None:
        if self._is_native:
            self._scope["batch"](msgspec.json.decode(batch))
        else:
            self._real.post(batch)

    def watch(self) -> Stop | None:
        return None if self._is_native else self._real.watch()

    def memory_stop(self) -> Stop:
        return self._real.memory_stop()

    def crash_stop(self) -> Stop:
        return self._real.crash_stop()

    def relieve(self) -> None:
        self._real.relieve()

    def close(self) -> None:
        self._real.close()
