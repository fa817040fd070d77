"""What isolates are told and what they say: the elements of batches and outputs, checked by shape.

Path:   runner -> `start_message`, `answer_message` -> cell ... `MESSAGES` <- cell
Never:  trusts more than the shape: numbers and sizes are checked where they are used.
"""

from typing import Final

import msgspec

from engine.run import Run
from runtimes.contract import (
    ABORT,
    ANSWER,
    START,
    Count,
    DoneStatus,
    GuestError,
    LimitHit,
    Outcome,
)


class Done(msgspec.Struct, array_like=True, tag=0):
    run: int
    status: DoneStatus
    value: msgspec.Raw
    cpu_ns: Count = 0  # this and the rest: where the runtime knows them of each run
    memory_bytes: Count = 0
    fuel: Count = 0


class Call(msgspec.Struct, array_like=True, tag=1):
    run: int
    call: int
    operation: str
    arguments: msgspec.Raw


class LogLines(msgspec.Struct, array_like=True, tag=2):
    run: int
    lines: list[tuple[str, Count, str]]
    dropped: int


class Usage(msgspec.Struct, array_like=True, tag=3):
    run: int
    cpu_ns: Count
    memory_bytes: Count
    fuel: Count


class Stopped(msgspec.Struct):
    """The value of a Done that is `stopped`."""

    outcome: Outcome
    limit: LimitHit | None
    error: GuestError | None


class Stop(msgspec.Struct):
    run: int
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


MESSAGES: Final = msgspec.json.Decoder(list[Done | Call | LogLines | Usage])
COUNT: Final = msgspec.json.Decoder(Count)
STOPPED: Final = msgspec.json.Decoder(Stopped)
STOP: Final = msgspec.json.Decoder(Stop)
THROWN: Final = msgspec.json.Decoder(Thrown)


def check_raw(text: bytes) -> None:
    """Look into what `msgspec.Raw` took unseen: it will be stored, and read again by others.

    Raises:
        ValueError: it is not UTF-8, or not JSON; the guest's runtime would never send it.
    """
    try:
        msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from error


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
