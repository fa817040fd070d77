"""Decides what becomes of a due time, and makes the run that it asks for. Pure.

Path:   engine.scheduler, engine.schedules -> `decide`, `launch` -> store.fires, run_queue
Never:  touches the store or a clock.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import msgspec

from engine.catalogue import Function, Version
from engine.clock import iso
from engine.flow import due_at, queued_for
from engine.policies import Backoff, Concurrency, Flow, Queued, write_queued
from engine.quotas import SCHEDULE_BUFFERED_MAX
from engine.store.run_queue import queue_row
from engine.store.schedules import CAUSE, NEVER_MS, Options
from jobs.schedule import Spec, next_after

HANDLERS: Final = ("scheduled", "job", "main", "default")  # in the order in which they are taken
TIMES_MAX: Final = 100  # due times of one schedule that one transaction deals with
LATE_MS: Final = 10_000  # from here on a run is told that it is catching up
_encode: Final = msgspec.json.encode


class Overlap(StrEnum):
    """What becomes of a due time while an earlier run of the schedule has not ended."""

    SKIP = "skip"
    BUFFER_ONE = "buffer_one"
    BUFFER_ALL = "buffer_all"
    CANCEL_OTHER = "cancel_other"
    ALLOW_ALL = "allow_all"


OVERLAP_NAMES: Final[Mapping[str, Overlap]] = {
    **{overlap.value: overlap for overlap in Overlap},
    "terminate_other": Overlap.CANCEL_OTHER,  # as Temporal calls it: here both are the same
}


class Outcome(StrEnum):
    """What became of a due time. Stored and shown by these names; never renamed."""

    QUEUED = "queued"
    BUFFERED = "buffered"  # queued, to run when the one before it has ended
    REPLACED = "replaced"  # queued, and the runs before it were cancelled
    OVERLAPPED = "overlapped"  # an earlier run had not ended: nothing runs
    MISSED = "missed"  # it was too late for the catch-up window: nothing runs
    MISSED_MORE = "missed_more"  # as missed, with all due times between it and the next row
    QUEUE_FULL = "queue_full"  # the project may have no more in the queue: nothing runs
    NOTHING_TO_RUN = "nothing_to_run"  # the function has no live version with a handler for it


RUNS: Final = frozenset({Outcome.QUEUED, Outcome.BUFFERED, Outcome.REPLACED})


def decide(overlap: Overlap, running: int, buffered: int = 0) -> Outcome:
    """Say what becomes of a due time.

    Args:
        overlap: the schedule's policy.
        running: earlier runs that have not ended and wait for none of the same schedule.
        buffered: earlier runs that wait for them.
    """
    alive = running + buffered
    if alive == 0 or overlap is Overlap.ALLOW_ALL:
        return Outcome.QUEUED
    if overlap is Overlap.SKIP:
        return Outcome.OVERLAPPED
    if overlap is Overlap.CANCEL_OTHER:
        return Outcome.REPLACED
    waiting_max = 1 if overlap is Overlap.BUFFER_ONE else SCHEDULE_BUFFERED_MAX
    return Outcome.BUFFERED if alive <= waiting_max else Outcome.OVERLAPPED


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """What has become due of one cursor."""

    due_ms: tuple[int, ...]  # within the catch-up window
    missed_ms: tuple[int, ...]  # too late for it
    left_out: int  # due times after the last of `missed_ms` that have no row of their own
    next_ms: int


def due_times(spec: Spec, first_ms: int, now_ms: int, catchup_ms: int) -> Times:
    """Return what is due from `first_ms` until `now_ms`, at most TIMES_MAX, and what comes next.

    After a long standstill missed times beyond TIMES_MAX are passed over as a whole.
    """
    due: list[int] = []
    missed: list[int] = []
    window_ms = now_ms - catchup_ms
    at_ms: int | None = first_ms
    while at_ms is not None and at_ms <= now_ms and len(due) + len(missed) < TIMES_MAX:
        (due if at_ms >= window_ms else missed).append(at_ms)
        at_ms = next_after(spec, at_ms)
    left_out = 0
    if at_ms is not None and at_ms < window_ms:
        left_out = (window_ms - at_ms) // spec.every_ms if spec.every_ms else 1
        at_ms = next_after(spec, window_ms - 1)
    return Times(
        due_ms=tuple(due),
        missed_ms=tuple(missed),
        left_out=left_out,
        next_ms=NEVER_MS if at_ms is None else at_ms,
    )


def handler_of(version: Version) -> str | None:
    """Return which handler of a version a schedule runs; None: it has none for that."""
    return next((name for name in HANDLERS if name in version.handlers), None)


def jitter_ms(schedule_id: str, due_ms: int, device_id: str, most_ms: int) -> int:
    """Return how much later than due this one runs: the same, whoever asks, 0 to `most_ms`."""
    if not most_ms:
        return 0
    digest = hashlib.blake2b(f"{schedule_id}:{due_ms}:{device_id}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big") % (most_ms + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What runs at a due time: a schedule, or a part of it for one device."""

    schedule_id: str
    project_id: str
    function_id: str
    spec: Spec  # in the time zone that it went by
    options: Options
    payload: str  # JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A run to be queued."""

    run_id: str
    row: tuple[Any, ...]  # of run_queue
    queued: Queued  # its policy, for `store.flow.note_here`


def launch(
    task: Task,
    function: Function,
    *,
    run_id: str,
    due_ms: int,
    now_ms: int,
    device_id: str | None = None,
    overlap: Overlap | None = None,
    by_hand: bool = False,
) -> Launch | None:
    """Return the run of one due time; None: the function has no handler for it.

    Args:
        task: what runs.
        function: that runs it.
        run_id: the new execution's id.
        due_ms: the nominal time.
        now_ms: the time.
        device_id: device-local: for which one.
        overlap: instead of the schedule's own.
        by_hand: somebody asked for it now: no jitter.
    """
    version = function.choose(run_id)
    handler = handler_of(version)
    if handler is None:
        return None
    options = task.options
    late = now_ms - due_ms > LATE_MS
    given = _given(task, handler, due_ms, device_id, late=late)
    queued, lane = _queued(version, task, given)
    if (overlap or Overlap(options.overlap)) in (Overlap.BUFFER_ONE, Overlap.BUFFER_ALL):
        queued, lane = _one_by_one(queued), _lane(task.schedule_id, device_id)
    at_ms = max(due_ms, now_ms)
    if not by_hand:
        at_ms = max(
            now_ms,
            due_ms + jitter_ms(task.schedule_id, due_ms, device_id or "", options.jitter_ms),
        )
    row = queue_row(
        run_id=run_id,
        project_id=task.project_id,
        function_id=task.function_id,
        cause=CAUSE,
        handler=handler,
        root_id=run_id,
        created_ms=now_ms,
        device_id=device_id,
        given=given,
        due_ms=due_at(queued, now_ms, at_ms),
        priority=options.priority,
        schedule_id=task.schedule_id,
        lane=lane,
        policy=write_queued(queued),
    )
    return Launch(run_id=run_id, row=row, queued=queued)


def _queued(version: Version, task: Task, given: str) -> tuple[Queued, str | None]:
    options, declared = task.options, version.policy.retries
    most = options.max_attempts or (1 if declared is None else declared.max_attempts)
    base = Queued(
        max_attempts=most,
        backoff=Backoff() if declared is None else declared.backoff,
        dead_letter=most > 1 or declared is not None,
        queue=options.queue,
        watched=options.watched,
    )
    return queued_for(version.policy, given, task.project_id, task.function_id, base=base)


def _one_by_one(queued: Queued) -> Queued:
    """A run has one lane, and here it is the schedule's: the version's own limit gives way."""
    flow = msgspec.structs.replace(
        queued.flow or Flow(), concurrency=Concurrency(limit=1), singleton=None
    )
    return msgspec.structs.replace(queued, flow=flow)


def _lane(schedule_id: str, device_id: str | None) -> str:
    return f"s:{schedule_id}" if device_id is None else f"s:{schedule_id}:{device_id}"


def _given(task: Task, handler: str, due_ms: int, device_id: str | None, *, late: bool) -> str:
    """Return the handler's input as JSON.

    `job` is also what one-off jobs run, so it gets what they would give it: the payload alone.
    """
    if handler == "job":
        return "{}" if task.payload == "null" else task.payload
    event: dict[str, Any] = {
        "scheduledTime": due_ms,
        "time": iso(due_ms),
        "cron": task.spec.cron or None,
        "timezone": task.spec.timezone,
        "scheduleId": task.schedule_id,
        "catchUp": late,
        "payload": msgspec.Raw(task.payload.encode()),
    }
    if device_id is not None:
        event["deviceId"] = device_id
    return _encode(event).decode()
