"""What isolates are told and what they say: the elements of batches and outputs, checked.

Path:   runner -> `start_message`, `answer_message` -> cell ... `messages_of` <- cell
Never:  decodes more at once than one message, or some that are small together, or a message larger
        than its kind can be; believes what no guest's runtime of ours would send.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

import msgspec

from engine.run import Run
from runtimes.contract import (
    ABORT,
    ANSWER,
    FRAME_BYTES_MAX,
    MIB,
    START,
    Count,
    DoneStatus,
    GuestError,
    LimitHit,
    Outcome,
)

# What guests' runtimes send at most. Texts are limited there in UTF-16 units, which have three
# bytes at most, or six where JSON escapes them.
DONE_BYTES_MAX: Final = 4 * MIB  # a result of 1 MiB of units
CALL_BYTES_MAX: Final = 13 * MIB  # 4 MiB of units: what one step may ask, in one call
LOG_BYTES_MAX: Final = MIB  # 64 KiB of units, and 256 lines' level and time
USAGE_BYTES_MAX: Final = 256
MESSAGE_BYTES_MAX: Final = (DONE_BYTES_MAX, CALL_BYTES_MAX, LOG_BYTES_MAX, USAGE_BYTES_MAX)
MESSAGES_PER_RUN: Final = 2_100  # 1,001 calls, in WebAssembly each with its usage; the log between
TOLD_BYTES_MAX: Final = 256 * 1024  # of an error or a stop that a run ends with
STOP_BYTES_MAX: Final = MIB  # with the log that the end of the cell would lose
OUTPUT_BYTES: Final = 16 * MIB  # the host calls of a step, whoever makes them, and the log
OUTPUT_RUN_BYTES: Final = 5 * MIB  # the result of each run, or its one call that waits
FEW_BYTES: Final = 8 * 1024  # of an output, which is then decoded whole
LEVELS: Final = frozenset({"debug", "info", "warn", "error"})
_HEAD_BYTES: Final = 3  # `[1,`
_OPEN, _KIND_0, _COMMA = b"[0,"
_KINDS_COUNT: Final = len(MESSAGE_BYTES_MAX)
_BETWEEN: Final = b",\n"
_LIMITS: Final = frozenset({"cpu_ms", "wall_ms", "memory_mb", "stack_bytes", "fuel"})
_STOPS: Final = frozenset({Outcome.CPU_EXCEEDED, Outcome.MEMORY_EXCEEDED, Outcome.TIMED_OUT})
_CELL_STOPS: Final = _STOPS | {Outcome.CRASHED}
_NAME_CHARS, _MESSAGE_CHARS, _STACK_CHARS, _FILE_CHARS = 200, 4_200, 8_000, 300


class Done(msgspec.Struct, array_like=True, tag=0):
    run: Count
    status: DoneStatus
    value: msgspec.Raw
    cpu_ns: Count = 0  # this and the rest: where the runtime knows them of each run
    memory_bytes: Count = 0
    fuel: Count = 0


class Call(msgspec.Struct, array_like=True, tag=1):
    run: Count
    call: Count
    operation: str
    arguments: msgspec.Raw


class LogLines(msgspec.Struct, array_like=True, tag=2):
    run: Count
    lines: list[tuple[str, Count, str]]
    dropped: Count


class Usage(msgspec.Struct, array_like=True, tag=3):
    run: Count
    cpu_ns: Count
    memory_bytes: Count
    fuel: Count


class Stopped(msgspec.Struct):
    """The value of a Done that is `stopped`."""

    outcome: Outcome
    limit: LimitHit | None
    error: GuestError | None


class Stop(msgspec.Struct):
    run: Count
    outcome: Outcome
    limit: LimitHit | None
    log: list[str]


class Thrown(msgspec.Struct):
    name: str
    message: str
    stack: str
    file: str = ""  # where the runtime knows the place by itself
    line: Count = 0
    column: Count = 0


Message = Done | Call | LogLines | Usage
_MESSAGE: Final = msgspec.json.Decoder(Message)
_MESSAGES: Final = msgspec.json.Decoder(list[Message])
_COUNT: Final = msgspec.json.Decoder(Count)
_STOPPED: Final = msgspec.json.Decoder(Stopped)
_STOP: Final = msgspec.json.Decoder(Stop)
_THROWN: Final = msgspec.json.Decoder(Thrown)


def output_bytes_max(runs_count: int) -> int:
    """Return how large an output can be, with so many runs inside."""
    return min(FRAME_BYTES_MAX, OUTPUT_BYTES + runs_count * OUTPUT_RUN_BYTES)


def messages_of(output: bytes, count_max: int) -> Iterable[Message]:
    """Return the messages of an output: all at once if they are few, else see `_one_by_one`.

    Raises:
        ValueError, msgspec.MsgspecError: it is no output, or has more than `count_max` messages.
    """
    if len(output) > FEW_BYTES:
        return _one_by_one(output, count_max)
    messages = _MESSAGES.decode(output)
    if len(messages) > count_max:
        raise ValueError(f"{len(messages)} messages")
    return messages


def _one_by_one(output: bytes, count_max: int) -> Iterator[Message]:
    r"""Yield the messages of an output, each decoded when its turn comes.

    Ten bytes of JSON can be a hundred in memory, so nothing is decoded before its size is known.
    Between two messages are a comma and a line break, and no message has a line break inside.
    """
    if output[:1] != b"[" or output[-1:] != b"]":
        raise ValueError("an output that is no array")
    at, last, count = 1, len(output) - 1, 0
    while at < last:
        end = output.find(_BETWEEN, at, last)
        if end < 0:
            end = last
        count += 1
        size = end - at
        if count > count_max or size < _HEAD_BYTES:
            raise ValueError(f"message {count}, of {size} bytes")
        kind = output[at + 1] - _KIND_0
        if output[at] != _OPEN or output[at + 2] != _COMMA or not 0 <= kind < _KINDS_COUNT:
            raise ValueError(f"message {count} begins with {output[at : at + _HEAD_BYTES]!r}")
        if size > MESSAGE_BYTES_MAX[kind]:
            raise ValueError(f"message {count}, of kind {kind} and {size} bytes")
        yield _MESSAGE.decode(output[at:end])
        at = end + len(_BETWEEN)


def read_count(value: bytes) -> int:
    return _COUNT.decode(value)


def read_thrown(value: bytes) -> GuestError:
    """Return what a run threw, cut to what may be stored."""
    _check_told(value)
    thrown = _THROWN.decode(value)
    error = GuestError(
        name=thrown.name, message=thrown.message, stack=thrown.stack, file=thrown.file,
        line=thrown.line, column=thrown.column,
    )  # fmt: skip
    return clipped(error)


def read_stopped(value: bytes) -> Stopped:
    """Return why a run was stopped that its cell survives.

    Raises:
        ValueError: no runtime of ours stops a run so.
    """
    _check_told(value)
    stopped = _STOPPED.decode(value)
    _check_stop(stopped.outcome, stopped.limit, _STOPS)
    if stopped.error is not None:
        stopped.error = clipped(stopped.error)
    return stopped


def read_stop(value: bytes) -> Stop:
    """Return why a cell ends itself.

    Raises:
        ValueError: no cell of ours ends itself so.
    """
    stop = _STOP.decode(value)
    _check_stop(stop.outcome, stop.limit, _CELL_STOPS)
    return stop


def clipped(error: GuestError) -> GuestError:
    """Return the error cut to what may be stored and shown."""
    return replace(
        error,
        name=error.name[:_NAME_CHARS],
        message=error.message[:_MESSAGE_CHARS],
        stack=error.stack[:_STACK_CHARS],
        file=error.file[:_FILE_CHARS],
    )


def _check_told(value: bytes) -> None:
    if len(value) > TOLD_BYTES_MAX:
        raise ValueError(f"{len(value)} bytes about how a run ended")


def _check_stop(outcome: Outcome, limit: LimitHit | None, allowed: frozenset[Outcome]) -> None:
    if outcome not in allowed or (limit is not None and limit.name not in _LIMITS):
        name = "" if limit is None else limit.name[:80]
        raise ValueError(f"a stop as {outcome} {name}")


def start_message(number: int, run: Run) -> bytes:
    limits = run.limits
    deadline_ms = run.clock_ms + limits.wall_ms
    return b'[%d,%d,"%s",%d,"%s",%d,%d,%d,%d,["%s",%d,%d,%d,"%s",%d],%s]' % (
        START, number, run.handler.encode(), run.clock_ms, run.seed.encode(), limits.cpu_ms,
        limits.output_bytes, limits.log_lines, limits.log_bytes, run.execution_id.encode(),
        run.version.number, run.attempt, deadline_ms, run.root_id.encode(), run.depth, run.input,
    )  # fmt: skip


def answer_message(number: int, call: int, now_ms: int, *, ok: bool, value: bytes) -> bytes:
    """Return the answer to one host call; `value` is JSON."""
    return b"[%d,%d,%d,%d,%b,%b]" % (
        ANSWER,
        number,
        call,
        now_ms,
        b"true" if ok else b"false",
        value,
    )


def abort_message(number: int) -> bytes:
    """Return what makes an isolate forget a run."""
    return b"[%d,%d]" % (ABORT, number)
