"""The life of a job: one run that somebody asked for, with all its attempts. Pure.

Path:   store.jobs, store.cancellations -> `before` at each change
        hostcalls.jobs -> `progress_json`
Never:  reads a clock, a table or the network.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

import msgspec

from engine.clock import iso
from engine.errors import Invalid

MESSAGE_CHARS_MAX: Final = 500  # of a progress


class Status(StrEnum):
    """Where a job stands. Stored and shown by these names; never renamed."""

    QUEUED = "queued"  # for its first attempt, or for another one
    RUNNING = "running"  # shown, never stored: its row in run_queue belongs to a node
    SUCCEEDED = "succeeded"
    FAILED = "failed"  # and left no dead letter
    DEAD_LETTERED = "dead_lettered"  # every attempt failed; it can be redriven
    CANCELLED = "cancelled"
    SKIPPED = "skipped"  # expired, rate limited, debounced, or one like it was running


NEXT: Final[dict[Status, frozenset[Status]]] = {
    Status.QUEUED: frozenset({Status.RUNNING, Status.CANCELLED, Status.SKIPPED}),
    Status.RUNNING: frozenset(  # QUEUED: for another attempt, or its node is gone
        {
            Status.QUEUED,
            Status.SUCCEEDED,
            Status.FAILED,
            Status.DEAD_LETTERED,
            Status.CANCELLED,
        }
    ),
    Status.SUCCEEDED: frozenset(),
    Status.FAILED: frozenset(),
    Status.DEAD_LETTERED: frozenset({Status.QUEUED}),  # redriven by hand
    Status.CANCELLED: frozenset(),
    Status.SKIPPED: frozenset(),
}
assert NEXT.keys() == set(Status)

OPEN: Final = frozenset({Status.QUEUED, Status.RUNNING})
ENDED: Final = frozenset(Status) - OPEN


def stored(statuses: Iterable[Status]) -> tuple[str, ...]:
    """Return the words under which jobs in these statuses are found in the table."""
    found = {Status.QUEUED if status is Status.RUNNING else status for status in statuses}
    return tuple(sorted(status.value for status in found))


def before(status: Status) -> tuple[str, ...]:
    """Return the stored words of the statuses that may become this one."""
    return stored(known for known in Status if status in NEXT[known])


def progress_json(value: float, message: str, now_ms: int) -> str:
    """Return how far a job is, as it is stored.

    Raises:
        Invalid: names the field.
    """
    if not 0 <= value <= 1:
        raise Invalid(f"progress must be 0 to 1, not {value}", "/value")
    if len(message) > MESSAGE_CHARS_MAX:
        raise Invalid(
            f"message must have at most {MESSAGE_CHARS_MAX} characters, has {len(message)}",
            "/message",
        )
    return msgspec.json.encode({"value": value, "message": message, "at": iso(now_ms)}).decode()
