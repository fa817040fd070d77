"""The words that the engine, the sandbox and every guest language share.

Path:   engine.execute -> sandbox -> runtimes.<language>; each speaks in these values
Never:  imports anything of ours; knows V8, Wasmtime, SQL or HTTP.
"""

import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final

import msgspec

MIB: Final = 1024 * 1024
FULL_CODE: Final = 85  # exit status of a cell in which guests left no memory for its own work


class Runtime(StrEnum):
    """The guest languages. Each has cells of its own kind; stored with the function."""

    JAVASCRIPT = "javascript"
    WASM = "wasm"


@dataclass(frozen=True, slots=True)
class CellKind:
    """What a cell is made for: one guest language, and whether machine code may come to be in it.

    Hardened: V8 interprets (`--jitless`), Wasmtime too, and the kernel refuses executable memory.
    """

    runtime: Runtime
    hardened: bool = False

    def __str__(self) -> str:
        return f"{self.runtime} hardened" if self.hardened else str(self.runtime)

    @classmethod
    def read(cls, text: str) -> "CellKind":
        """Return what `str` has written."""
        runtime, _, word = text.partition(" ")
        return cls(Runtime(runtime), word == "hardened")


class Outcome(StrEnum):
    """How a run ended. Stored, shown and counted by these names; never renamed."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"  # the guest threw, rejected, or called back with an error
    TIMED_OUT = "timed_out"  # wall time
    CPU_EXCEEDED = "cpu_exceeded"
    MEMORY_EXCEEDED = "memory_exceeded"
    OUTPUT_EXCEEDED = "output_exceeded"  # the result is larger than allowed
    HOST_CALLS_EXCEEDED = "host_calls_exceeded"
    EFFECTS_EXCEEDED = "effects_exceeded"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    SKIPPED = "skipped"
    CRASHED = "crashed"  # took its cell down with it, for none of the reasons above
    DEAD_LETTERED = "dead_lettered"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Hard stops for one run. Nothing is unlimited, so no field may be None."""

    cpu_ms: int  # the guest's own thread, waits excluded
    wall_ms: int  # the whole run, host calls included
    memory_mb: int  # the V8 heap, shared by its interleaved runs; or a wasm instance's memory
    output_bytes: int = 1 * MIB  # the result as UTF-8 JSON
    log_lines: int = 256
    log_bytes: int = 64 * 1024
    network_requests: int = 50
    host_calls: int = 1_000  # of any kind, timers included
    device_writes: int = 256  # values written
    effect_bytes: int = 4 * MIB  # of values and messages together
    deliveries: int = 20
    function_calls: int = 100
    kv_operations: int = 100  # on the key-value store, reads included
    fuel: int = 0  # WebAssembly instructions, about; 0: not metered

    def __post_init__(self) -> None:
        assert 0 < self.cpu_ms <= self.wall_ms, self
        assert 8 <= self.memory_mb <= 512, self  # noqa: PLR2004 - V8 needs some 4 MB for itself
        assert self.log_bytes >= 1024, self  # noqa: PLR2004 - room for the truncation line
        assert self.network_requests <= self.host_calls, self
        assert self.kv_operations <= self.host_calls, self


COUNT_MAX: Final = 2**53
Count = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]
"""A figure of a cell's: whatever it says, the store and the metrics can take it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitHit:
    """The exact limit that ended a run: `cpu_ms` 200, used 214."""

    name: str
    value: Count
    used: Count


class SourceWarning(msgspec.Struct, frozen=True, kw_only=True):
    """Something in an author's source that runs, and had better be written in another way."""

    file: str
    line: int  # from 1
    column: int  # from 1, in UTF-16 units
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestError:
    """What the guest threw, in the author's own file, line and column (1-based; 0 unknown)."""

    name: str
    message: str
    stack: str = ""
    file: str = ""
    line: Count = 0
    column: Count = 0


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    """Why a cell ends itself: which run did what. Sent to the engine before the end."""

    run: int
    outcome: Outcome
    limit: LimitHit | None
    log: list[str]


class LoadFailed(Exception):
    """The author's: the program does not build or load; `error` says where."""

    def __init__(self, error: GuestError) -> None:
        self.error = error
        super().__init__(error.message)


# Frames between the engine and a cell: u32 big-endian length of what follows, one byte kind,
# u32 isolate, payload. A cell's frames are validated like any stranger's.
class ToCell(StrEnum):
    LOAD = "L"  # payload: packed JSON header (see `runtimes.<language>.guest`) and the program
    BATCH = "B"  # payload: JSON array of messages, handed to the isolate as it is
    BUILD = "C"  # payload: packed JSON header and what was uploaded: compile only
    UNLOAD = "U"


class FromCell(StrEnum):
    READY = "r"  # payload: JSON list of lockdown layers
    BUILT = "b"  # payload: the compiled program, which only the same runtime understands
    LOADED = "l"  # payload: JSON {"handlers": [...], "kind": "..."}
    REFUSED = "e"  # payload: JSON GuestError: the code does not load
    OUTPUT = "o"  # payload: u64 CPU nanoseconds, u32 peak RSS in KiB, JSON array of messages, each
    # on a line of its own
    FAULT = "x"  # payload: text of an exception of ours in the cell, which ends after it
    STOPPED = "k"  # payload: JSON Stop; the cell ends itself after this frame


# Messages inside a BATCH (first element of each array).
START: Final = (
    0  # [0, run, handler, now_ms, seed, cpu_ms, output_bytes, log_lines, log_bytes, context, input]
)
ANSWER: Final = 1  # [1, run, call, now_ms, ok, value]
ABORT: Final = 2  # [2, run]
# Messages inside an OUTPUT.
DONE: Final = 0  # [0, run, status, value] and, where known, what USAGE has behind its run
CALL: Final = 1  # [1, run, call, operation, arguments]
LOG: Final = 2  # [2, run, [[level, at_ms, text], ...], dropped]
USAGE: Final = 3  # [3, run, CPU ns, memory bytes, fuel]: so far, with each CALL, where known


class DoneStatus(StrEnum):
    OK = "ok"  # value: the result
    THREW = "threw"  # value: {name, message, stack}
    OUTPUT = "output"  # value: bytes used
    STOPPED = "stopped"  # value: {outcome, limit, error}: a limit that the cell survives


FRAME_BYTES_MAX: Final = 96 * MIB  # 64 results of 1 MiB in one output, and what else is in it
BATCH_MESSAGES_MAX: Final = 64

_HEADER_LENGTH: Final = struct.Struct(">I")


def packed(header: bytes, body: bytes) -> bytes:
    """Return the payload of a LOAD or BUILD frame: u32 big-endian header length, header, body."""
    return _HEADER_LENGTH.pack(len(header)) + header + body


def unpacked(payload: bytes) -> tuple[bytes, bytes]:
    """Return (header, body) of a payload that `packed` made."""
    (length,) = _HEADER_LENGTH.unpack_from(payload)
    start = _HEADER_LENGTH.size
    return payload[start : start + length], payload[start + length :]
