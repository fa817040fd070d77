"""Reads the fields of a schedule as they were sent: when it is due, and what becomes of it then.

Path:   engine.schedules -> here -> jobs.schedule, store.schedules.Options
Never:  takes what would never run, or what cannot be said again in the answer.

Fields come as a mapping of those that were sent; None stands for the default.
"""

import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Final

import msgspec
from sqlalchemy import Connection

from engine.durations import duration_ms
from engine.errors import Invalid, PayloadTooLarge
from engine.events import check_text
from engine.fires import OVERLAP_NAMES
from engine.intake import QUEUE_NAME
from engine.policies import ATTEMPTS_MAX
from engine.quotas import (
    SCHEDULE_CATCHUP_S_MAX,
    SCHEDULE_CATCHUP_S_MIN,
    SCHEDULE_EVERY_S_MIN,
    SCHEDULE_FAILURES_MAX,
    SCHEDULE_JITTER_S_MAX,
    SCHEDULE_PAYLOAD_BYTES_MAX,
)
from engine.store.deployments import live_deployment
from engine.store.functions import Function, find_function, find_summaries
from engine.store.run_queue import PRIORITIES
from engine.store.schedules import FOLLOWER_HANDLERS, Follower, Options
from jobs.cron import BadSchedule
from jobs.schedule import EVERY_MS_MAX, FIRST, RUN_AFTER, UTC_ZONE, Spec, checked

CLASSIC: Final = ("hourly", "daily", "weekly", "monthly")  # words that `every` takes
_TIMING: Final = ("cron", "every", "at")
_WORD: Final = re.compile(r"@?([a-z]+)")
Given = Mapping[str, Any]


def timing(given: Given, known: Spec | None, now_ms: int) -> Spec:
    """Return when the schedule is due.

    Args:
        given: of cron, every, at, timezone, seconds, gap, fold, start_ms, end_ms what was sent.
        known: what it was before; None: it is new.
        now_ms: the time; what has an interval counts from here, unless it has a start.

    Raises:
        Invalid: names the field and the remedy.
    """
    spec = known or Spec()
    changes: dict[str, Any] = {}
    if any(given.get(name) is not None for name in _TIMING):
        seconds = spec.seconds and given.get("cron") is not None
        changes = {"cron": "", "every_ms": 0, "at": "", "seconds": seconds}
        changes |= {name: given[name] for name in ("cron", "at") if given.get(name) is not None}
        changes |= _every(given.get("every"))
    for name, default in (
        ("timezone", UTC_ZONE), ("seconds", False), ("gap", RUN_AFTER), ("fold", FIRST),
        ("start_ms", None), ("end_ms", None),
    ):  # fmt: skip
        if name in given:
            changes[name] = default if given[name] is None else given[name]
    if given.get("cron") is not None and given.get("every") is not None:
        raise Invalid("exactly one of cron, every and at says when; 2 are given", "/cron")
    spec = msgspec.structs.replace(spec, **changes)
    if spec.every_ms:
        anchor_ms = spec.anchor_ms if known is not None and "every" not in given else now_ms
        spec = msgspec.structs.replace(spec, anchor_ms=_first(spec.start_ms, anchor_ms))
    try:
        return checked(spec)
    except BadSchedule as error:
        raise Invalid(error.message, f"/{error.field}") from error


def _first(value: int | None, other: int) -> int:
    return other if value is None else value


def _every(value: float | str | None) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, str) and (word := _WORD.fullmatch(value)) and word[1] in CLASSIC:
        return {"cron": f"@{word[1]}"}
    try:
        least_ms, most_ms = SCHEDULE_EVERY_S_MIN * 1000, EVERY_MS_MAX
        return {"every_ms": duration_ms(value, "/every", least_ms=least_ms, most_ms=most_ms)}
    except Invalid as error:
        raise Invalid(f"{error}, or hourly, daily, weekly, monthly", "/every") from error


def _overlap(value: str) -> str:
    if value not in OVERLAP_NAMES:
        raise Invalid(f"{value[:40]!r} is none of {', '.join(OVERLAP_NAMES)}", "/overlap")
    return OVERLAP_NAMES[value].value


def _priority(value: str) -> int:
    if value not in PRIORITIES:
        raise Invalid(f"{value[:40]!r} is none of {', '.join(PRIORITIES)}", "/priority")
    return PRIORITIES[value]


def _queue(value: str) -> str:
    if not QUEUE_NAME.fullmatch(value):
        raise Invalid(f"{value[:80]!r} must be 1 to 64 letters, digits, '.', '_' or '-'", "/queue")
    return value


def _catchup(value: float | str) -> int:
    least_ms, most_ms = SCHEDULE_CATCHUP_S_MIN * 1000, SCHEDULE_CATCHUP_S_MAX * 1000
    return duration_ms(value, "/catchup_window", least_ms=least_ms, most_ms=most_ms)


def _jitter(value: float | str) -> int:
    return duration_ms(value, "/jitter", most_ms=SCHEDULE_JITTER_S_MAX * 1000)


def _count(value: int, pointer: str, most: int) -> int:
    if not 1 <= value <= most:
        raise Invalid(f"must be 1 to {most}, not {value}", pointer)
    return value


_READERS: Final[Mapping[str, tuple[str, Callable[[Any], Any]]]] = {
    "overlap": ("overlap", _overlap),
    "catchup_window": ("catchup_ms", _catchup),
    "jitter": ("jitter_ms", _jitter),
    "priority": ("priority", _priority),
    "queue": ("queue", _queue),
    "max_attempts": (
        "max_attempts", partial(_count, pointer="/max_attempts", most=ATTEMPTS_MAX)
    ),
    "pause_on_failure": (
        "pause_on_failure", partial(_count, pointer="/pause_on_failure", most=SCHEDULE_FAILURES_MAX)
    ),
}  # fmt: skip


def options_of(connection: Connection, project_id: str, given: Given, known: Options) -> Options:
    """Return `known` with what was sent of overlap, catchup_window, jitter, on_failure, ..."""
    changes: dict[str, Any] = {}
    for name, (attribute, read) in _READERS.items():
        if name in given:
            value = given[name]
            changes[attribute] = getattr(Options(), attribute) if value is None else read(value)
    for name in ("on_failure", "on_recovery"):
        if name in given:
            asked = given[name]
            changes[name] = asked and _follower(connection, project_id, asked, f"/{name}")
    return msgspec.structs.replace(known, **changes)


def _follower(
    connection: Connection, project_id: str, asked: Mapping[str, Any], pointer: str
) -> Follower:
    name = asked["function"]
    function = function_of(connection, project_id, name, f"{pointer}/function", FOLLOWER_HANDLERS)
    asked_times = 1 if asked.get("times") is None else asked["times"]
    times = _count(asked_times, f"{pointer}/times", SCHEDULE_FAILURES_MAX)
    return Follower(function_id=function.id, function=function.name, times=times)


def function_of(
    connection: Connection, project_id: str, name: str, pointer: str, handlers: Collection[str]
) -> Function:
    """Return a function whose live versions all have one of these handlers."""
    function = find_function(connection, project_id, name)
    if function is None:
        raise Invalid(f"there is no function {name[:80]!r} in this project", pointer)
    live = live_deployment(connection, function.id)
    numbers = [share.version for share in live.versions] if live else []
    for version in find_summaries(connection, function.id, numbers).values():
        if not set(handlers) & set(version.handlers):
            raise Invalid(
                f"version {version.number} of {function.name} has no handler for this: it needs "
                f"{' or '.join(handlers)} and has {', '.join(version.handlers)}",
                pointer,
            )
    return function


def payload_of(given: Given, known: str) -> str:
    """Return the payload as it is stored: `known`, unless another one was sent, as JSON."""
    if "payload" not in given:
        return known
    text: bytes = given["payload"] or b"null"
    if len(text) > SCHEDULE_PAYLOAD_BYTES_MAX:
        raise PayloadTooLarge(
            "the payload", "schedule_payload_bytes", SCHEDULE_PAYLOAD_BYTES_MAX, len(text)
        )
    check_text(text, "/payload")
    return text.decode()


def check_local(spec: Spec, given: Given) -> None:
    """Refuse what means nothing where each device has a time zone of its own."""
    if given.get("timezone") is not None:
        raise Invalid("a device-local schedule goes by each device's; leave it out", "/timezone")
    if spec.every_ms:
        raise Invalid("an interval is the same everywhere; use cron or at", "/every")
    if spec.at.endswith("Z"):
        raise Invalid("an instant is the same everywhere; leave the offset out", "/at")
