"""Names how a run ended: traps, exits, limits; with the author's own functions in the backtrace.

Path:   guest -> here -> the DONE message
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import msgspec

from runtimes.contract import MIB, DoneStatus, GuestError, LimitHit, LoadFailed, Outcome
from runtimes.webassembly.program import BadPointer, Program
from runtimes.webassembly.results import BadResult
from runtimes.webassembly.run import BadImport, GuestRun, Halted, OutputTooLarge
from runtimes.webassembly.wasi import Exit
from runtimes.webassembly.wasmtime_unsafe import (
    STACK_BYTES,
    TRAP_FUEL,
    TRAP_STACK,
    TRAP_UNCAUGHT,
    ModuleRefused,
    OutOfBounds,
    Trapped,
)

# What the guest, and nobody else, can be to blame for.
GUEST_ERRORS: Final = (
    Trapped, Exit, OutputTooLarge, BadImport, BadPointer, BadResult, OutOfBounds, ModuleRefused,
    RecursionError, MemoryError, Halted,
)  # fmt: skip
_REASONS: Final[Mapping[int, str]] = {  # by number in <wasmtime/trap.h>
    0: "call stack exhausted",
    1: "out of bounds memory access",
    2: "unaligned atomic memory access",
    3: "out of bounds table access",
    4: "call of an empty table element",
    5: "indirect call type mismatch",
    6: "integer overflow",
    7: "integer divide by zero",
    8: "invalid conversion to integer",
    9: "unreachable",
    10: "interrupted",
    11: "out of fuel",
    13: "null reference",
    TRAP_UNCAUGHT: "uncaught exception",
    -1: "uncaught exception",  # the one trap that comes out of the C functions without a number
}
_FULL: Final = 0.9  # of its memory: a guest that fails here failed for want of more
_NOTABLE: Final = 0.25
_OVER_LIMIT: Final = "exceeds memory limits"  # Wasmtime's words
_FRAME: Final = re.compile(r"^\s*\d+:\s+(0x[0-9a-f]+) - (.*)$")
_UNNAMED: Final = re.compile(r"<wasm function (\d+)>")
_PLACE: Final = re.compile(r"^\s+at (.+):(\d+):(\d+)$")


class Stopped(msgspec.Struct, frozen=True, kw_only=True):
    """The value of a DONE that is `stopped`: a limit that the cell survives."""

    outcome: Outcome
    limit: LimitHit | None = None
    error: GuestError | None = None


def ending_of(run: GuestRun, program: Program, error: Exception) -> tuple[DoneStatus, Any]:
    """Return status and value of the DONE message for what ended a run."""
    if isinstance(error, OutputTooLarge):
        return DoneStatus.OUTPUT, error.used
    if isinstance(error, ModuleRefused) and not run.starting:  # its exceptions have filled it
        hit = LimitHit(name="memory_mb", value=program.memory_mb(run), used=program.memory_mb(run))
        told = GuestError(name="MemoryError", message=str(error)[:4000])
        return DoneStatus.STOPPED, Stopped(outcome=Outcome.MEMORY_EXCEEDED, limit=hit, error=told)
    if isinstance(error, ModuleRefused) and _OVER_LIMIT in str(error):
        used_mb = -(-program.shape.memory_bytes // MIB)
        hit = LimitHit(name="memory_mb", value=program.memory_mb(run), used=used_mb)
        return DoneStatus.STOPPED, Stopped(outcome=Outcome.MEMORY_EXCEEDED, limit=hit)
    if isinstance(error, ModuleRefused | MemoryError):
        message = f"there is no room in the cell for the instance's memory: {error}"
        told = GuestError(name="MemoryError", message=message[:4000])
        return DoneStatus.STOPPED, Stopped(outcome=Outcome.MEMORY_EXCEEDED, error=told)
    if isinstance(error, Trapped) and error.code == TRAP_STACK:
        hit = LimitHit(name="stack_bytes", value=STACK_BYTES, used=STACK_BYTES)
        told = trap_error(error)
        return DoneStatus.STOPPED, Stopped(outcome=Outcome.MEMORY_EXCEEDED, limit=hit, error=told)
    if isinstance(error, Trapped) and error.code == TRAP_FUEL:
        hit = LimitHit(name="fuel", value=program.fuel, used=program.fuel)
        return DoneStatus.STOPPED, Stopped(outcome=Outcome.CPU_EXCEEDED, limit=hit)
    told = guest_error(run, error)
    memory_mb = program.memory_mb(run)
    share = memory_bytes(run) / (memory_mb * MIB)
    if isinstance(error, Trapped | Exit) and share >= _FULL:
        used_mb = -(-memory_bytes(run) // MIB)
        hit = LimitHit(name="memory_mb", value=memory_mb, used=used_mb)
        return DoneStatus.STOPPED, Stopped(outcome=Outcome.MEMORY_EXCEEDED, limit=hit, error=told)
    message = told.message
    grew = memory_bytes(run) > program.shape.memory_bytes
    if isinstance(error, Trapped | Exit) and grew and share >= _NOTABLE:
        message += (
            f" (its memory had {memory_bytes(run) / MIB:.1f} of {memory_mb} MB: perhaps it "
            "asked for more than was left)"
        )
    return DoneStatus.THREW, replace(told, message=message)


def guest_error(run: GuestRun, error: Exception) -> GuestError:
    """Return the error as its author is told."""
    if isinstance(error, Trapped):
        told = trap_error(error)
        words = run.last_words() if told.message == "unreachable" else ""  # of abort, assert, panic
        return replace(told, message=f"unreachable: {words}"[:4000]) if words else told
    if isinstance(error, Exit):
        words = run.last_words()
        message = f"{error}: {words}" if words else str(error)
        return GuestError(name="ExitError", message=message[:4000])
    name = {BadResult: "ResultError", RecursionError: "RangeError"}.get(type(error), "OutOfBounds")
    if isinstance(error, BadImport):
        name = "ImportError"
    return GuestError(name=name, message=str(error)[:4000])


def load_failed(
    run: GuestRun, program: Program, error: Exception, stop: Stopped | None
) -> LoadFailed:
    """Return why a module that was just compiled is not taken."""
    status, value = ending_of(run, program, error)
    if stop is not None:
        status, value = DoneStatus.STOPPED, stop
    if isinstance(error, ModuleRefused):
        message = f"{error}; limits.memory_mb is {program.memory_mb(run)}"
        return LoadFailed(GuestError(name="LinkError", message=message[:4000]))
    told = guest_error(run, error)
    message = f"the module's start ended: {told.message}"
    if status is DoneStatus.STOPPED and value.limit is not None:
        hit = value.limit
        message = f"the module's start ended as {value.outcome}: {hit.name} {hit.value}"
    return LoadFailed(
        GuestError(
            name=told.name, message=message[:4000], stack=told.stack, file=told.file,
            line=told.line, column=told.column,
        )
    )  # fmt: skip


def memory_bytes(run: GuestRun) -> int:
    return 0 if run.instance is None else run.instance.memory_bytes()


def trap_error(error: Trapped) -> GuestError:
    """Return a trap as its author is told: the reason, the functions, the place if it is known."""
    rows = [
        f"    at {frame.name or f'function {frame.function}'} ({frame.offset:#x})"
        for frame in error.frames
    ]
    file, line, column = "", 0, 0
    if error.text:
        rows, (file, line, column) = _with_lines(error.text)
    return GuestError(
        name="Trap",
        message=_REASONS.get(error.code, f"trap {error.code}"),
        stack="\n".join(rows)[:8000],
        file=file,
        line=line,
        column=column,
    )


def _with_lines(report: str) -> tuple[list[str], tuple[str, int, int]]:
    """Read functions with files and lines out of Wasmtime's report, and the first place."""
    rows: list[str] = []
    place: tuple[str, int, int] | None = None
    for row in report.partition("Caused by:")[0].splitlines():
        if frame := _FRAME.match(row):
            name = _UNNAMED.sub(r"function \1", frame[2].removeprefix("<unknown>!"))
            rows.append(f"    at {name} ({frame[1]})")
        elif rows and (found := _PLACE.match(row)):
            rows[-1] = f"{rows[-1].rpartition(' (')[0]} ({found[1]}:{found[2]}:{found[3]})"
            place = place or (found[1], int(found[2]), int(found[3]))
    return rows, place or ("", 0, 0)
