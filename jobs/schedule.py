"""When a schedule is due: by a cron line, at an interval, or once; clock changes included.

Path:   engine.schedules, engine.scheduler -> Spec -> `next_after`, `instants`
Never:  reads a clock, or knows what is run.

Local time has gaps and folds. A cron line that names hours follows `gap` and `fold`; one whose
hour is a wildcard goes by real time: it runs on both sides of a fold, and a gap is nothing to it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache
from typing import Final, NamedTuple

import msgspec

from jobs.cron import LAST_S, BadSchedule, first_match, parse_cron
from jobs.zones import LOOK_BACK_S, Stretch, check_zone, stretches

EVERY_MS_MIN: Final = 1_000
EVERY_MS_MAX: Final = 366 * 86_400_000
AT_CHARS_MAX: Final = 40
RUN_AFTER, SKIP = "run_after", "skip"  # what falls into a gap: once right after it, or not at all
FIRST, BOTH = "first", "both"  # what falls into a fold: the first time, or both times
UTC_ZONE: Final = "UTC"
NAMED_COUNT: Final = 3  # local times that a note spells out
_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 - of clocks on the wall, which have no zone


class Spec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One of `cron`, `every_ms` and `at`; the rest says how to read it. Made by `checked`."""

    cron: str = ""
    every_ms: int = 0
    at: str = ""  # 2030-01-31T07:00:00 is local time; with a Z it is an instant
    timezone: str = UTC_ZONE
    seconds: bool = False  # the cron line begins with a field of seconds
    gap: str = RUN_AFTER
    fold: str = FIRST
    anchor_ms: int = 0  # `every` counts from here
    start_ms: int | None = None  # not before
    end_ms: int | None = None  # not after

    def in_zone(self, zone: str) -> "Spec":
        return self if zone == self.timezone else msgspec.structs.replace(self, timezone=zone)


@dataclass(frozen=True, slots=True)
class Instant:
    """One due time, for people."""

    at_ms: int
    local: str  # with its offset from UTC
    note: str  # what is odd about it; mostly empty


@dataclass(frozen=True, slots=True)
class Skipped:
    """A local time that does not exist, and that nothing runs for."""

    local: str
    note: str


def checked(spec: Spec) -> Spec:
    """Return the spec as it is stored.

    Raises:
        BadSchedule: names the field and the remedy.
    """
    given = [name for name in ("cron", "every_ms", "at") if getattr(spec, name)]
    if len(given) != 1:
        found = "none is given" if not given else f"{len(given)} are given"
        raise BadSchedule("cron", f"exactly one of cron, every and at says when; {found}")
    check_zone(spec.timezone)
    if spec.gap not in (RUN_AFTER, SKIP):
        raise BadSchedule("dst/gap", f"{spec.gap[:40]!r} is neither {RUN_AFTER} nor {SKIP}")
    if spec.fold not in (FIRST, BOTH):
        raise BadSchedule("dst/fold", f"{spec.fold[:40]!r} is neither {FIRST} nor {BOTH}")
    if spec.seconds and not spec.cron:
        raise BadSchedule("seconds", "belongs to cron; leave it out")
    if spec.start_ms is not None and spec.end_ms is not None and spec.end_ms < spec.start_ms:
        raise BadSchedule("end_at", "is before start_at")
    if spec.cron:
        parse_cron(spec.cron, seconds=spec.seconds)
        return msgspec.structs.replace(spec, cron=" ".join(spec.cron.split()))
    if spec.at:
        return msgspec.structs.replace(spec, at=_checked_at(spec.at))
    if not EVERY_MS_MIN <= spec.every_ms <= EVERY_MS_MAX:
        raise BadSchedule("every", "must be 1s to 366d; for longer ones use cron or at")
    return spec


def next_after(spec: Spec, after_ms: int) -> int | None:
    """Return the first due time later than `after_ms`; None: there is none.

    Times before 1970 and after 8999 are none.
    """
    after_ms = max(after_ms, -1 if spec.start_ms is None else spec.start_ms - 1)
    if after_ms >= LAST_S * 1000:
        return None
    found_ms = _next(spec, after_ms)
    if found_ms is None or (spec.end_ms is not None and found_ms > spec.end_ms):
        return None
    return found_ms


def instants(spec: Spec, from_ms: int, to_ms: int | None = None) -> Iterator[int]:
    """Yield the due times from `from_ms` on, and before `to_ms`."""
    at_ms = next_after(spec, from_ms - 1)
    while at_ms is not None and (to_ms is None or at_ms < to_ms):
        yield at_ms
        at_ms = next_after(spec, at_ms)


def over_by(spec: Spec) -> int:
    """Return an instant from which on nothing is due, in whatever time zone."""
    if spec.end_ms is not None:
        return spec.end_ms + 1
    if spec.at:
        at = datetime.fromisoformat(spec.at).replace(tzinfo=None)
        return (_wall_s(at) + LOOK_BACK_S) * 1000
    return LAST_S * 1000


def explain(spec: Spec, at_ms: int) -> Instant:
    """Say what the clock on the wall shows at a due time, and whether that is odd."""
    at_s = at_ms // 1000
    here = stretches(spec.timezone, at_s)
    stretch = next(here)
    local = _EPOCH + timedelta(milliseconds=at_ms + stretch.offset_s * 1000)
    offset = timezone(timedelta(seconds=stretch.offset_s))
    text = local.replace(tzinfo=offset).isoformat()
    rule = _rule(spec)
    note = "" if rule is None else _note(rule, stretch, next(here, None), at_s)
    return Instant(at_ms, text, note)


def skipped(spec: Spec, from_ms: int, to_ms: int) -> list[Skipped]:
    """Return the local times of a range that fall into a gap and that nothing runs for.

    Only of lines that name hours, with `gap: skip`: to others a gap is nothing.
    """
    rule = _rule(spec)
    if rule is None or rule.by_real_time or rule.gap != SKIP:
        return []
    found: dict[str, Skipped] = {}
    for stretch in stretches(spec.timezone, from_ms // 1000):
        if from_ms <= stretch.start_s * 1000 < to_ms:
            for local in map(_wall, _in_gap(rule, stretch)):
                text = local.isoformat()
                found[text] = Skipped(text, f"gap: {_clock(local)} does not exist")
        if stretch.end_s * 1000 >= to_ms:
            break
    return list(found.values())


class _Rule(NamedTuple):
    """What decides about local times."""

    cron: str
    at: str
    seconds: bool
    gap: str
    fold: str
    by_real_time: bool

    def first(self) -> Callable[[int], int | None]:
        """Return a function that finds the first second of local time, from one on, that is due."""
        if self.cron:
            cron = parse_cron(self.cron, seconds=self.seconds)
            return lambda local_s: first_match(cron, local_s)
        at_s = _wall_s(datetime.fromisoformat(self.at))
        return lambda local_s: at_s if local_s <= at_s else None


def _next(spec: Spec, after_ms: int) -> int | None:
    if spec.every_ms:
        steps = (after_ms - spec.anchor_ms) // spec.every_ms + 1
        return spec.anchor_ms + steps * spec.every_ms
    rule = _rule(spec)
    if rule is None:
        at_ms = int(datetime.fromisoformat(spec.at).timestamp() * 1000)
        return at_ms if at_ms > after_ms else None
    found_s = _next_local(rule, spec.timezone, after_ms // 1000)
    return None if found_s is None else found_s * 1000


@lru_cache(maxsize=8192)
def _rule(spec: Spec) -> _Rule | None:
    """Return how the spec goes by local time; None: it does not."""
    if spec.every_ms or spec.at.endswith("Z"):
        return None
    by_real_time = bool(spec.cron) and parse_cron(spec.cron, seconds=spec.seconds).every_hour
    return _Rule(
        cron=spec.cron,
        at=spec.at,
        seconds=spec.seconds,
        gap=SKIP if by_real_time else spec.gap,
        fold=BOTH if by_real_time else spec.fold,
        by_real_time=by_real_time,
    )


@lru_cache(maxsize=65_536)  # of 10,000 schedules most have a line that others have too
def _next_local(rule: _Rule, zone: str, after_s: int) -> int | None:
    first = rule.first()
    for stretch in stretches(zone, after_s + 1):
        start_s, offset_s = stretch.start_s, stretch.offset_s
        if start_s > after_s and rule.gap == RUN_AFTER and _gap_is_due(first, stretch):
            return start_s
        local_s = max(after_s + 1, start_s) + offset_s
        if rule.fold == FIRST and stretch.before_s > offset_s:
            local_s = max(local_s, start_s + stretch.before_s)  # what is before was there already
        found_s = first(local_s)
        if found_s is None and start_s > after_s + LOOK_BACK_S:  # else a fold may bring it again
            return None
        if found_s is not None and found_s - offset_s < stretch.end_s:
            return found_s - offset_s
    return None


def _gap_is_due(first: Callable[[int], int | None], stretch: Stretch) -> bool:
    found_s = first(stretch.start_s + stretch.before_s)
    return found_s is not None and found_s < stretch.start_s + stretch.offset_s


def _in_gap(rule: _Rule, stretch: Stretch) -> list[int]:
    """Return the first local times that are due in the gap before a stretch."""
    first = rule.first()
    found: list[int] = []
    local_s = first(stretch.start_s + stretch.before_s)
    while local_s is not None and local_s < stretch.start_s + stretch.offset_s:
        found.append(local_s)
        if len(found) > NAMED_COUNT:
            break
        local_s = first(local_s + 1)
    return found


def _note(rule: _Rule, stretch: Stretch, following: Stretch | None, at_s: int) -> str:
    local_s = at_s + stretch.offset_s
    if at_s == stretch.start_s and rule.gap == RUN_AFTER and (missing := _in_gap(rule, stretch)):
        named = ", ".join(_clock(_wall(one)) for one in missing[:NAMED_COUNT])
        named += ", ..." if len(missing) > NAMED_COUNT else ""
        verb = "does" if len(missing) == 1 else "do"
        return f"gap: {named} {verb} not exist, runs at {_clock(_wall(local_s))}"
    if local_s < stretch.start_s + stretch.before_s:
        return "fold: second of two"
    if following is None or following.start_s != stretch.end_s:  # the clock is not changed then
        return ""
    if local_s >= following.start_s + following.offset_s:
        left_out = ", the second is left out" if rule.fold == FIRST else ""
        return f"fold: first of two{left_out}"
    return ""


def _checked_at(text: str) -> str:
    try:
        if len(text) > AT_CHARS_MAX:
            raise ValueError  # noqa: TRY301 - one message for all that is no time
        at = datetime.fromisoformat(text)
        if at.tzinfo is not None:
            at = at.astimezone(UTC)
    except (ValueError, OverflowError):
        raise BadSchedule(
            "at",
            f"{text[:AT_CHARS_MAX]!r} is no time; write 2030-01-31T07:00:00 for local time in the "
            "field timezone, or 2030-01-31T07:00:00Z for an instant",
        ) from None
    if at.microsecond:
        raise BadSchedule("at", "has a fraction of a second; write whole ones")
    if not 0 <= _wall_s(at.replace(tzinfo=None)) <= LAST_S:
        raise BadSchedule("at", "is not within the years 1970 to 8999")
    return at.replace(tzinfo=None).isoformat() + ("" if at.tzinfo is None else "Z")


def _wall(local_s: int) -> datetime:
    return _EPOCH + timedelta(seconds=local_s)


def _wall_s(local: datetime) -> int:
    return (local - _EPOCH) // timedelta(seconds=1)


def _clock(local: datetime) -> str:
    return local.strftime("%H:%M:%S" if local.second else "%H:%M")
