"""When clocks on the wall change: a time zone as stretches of time with one offset each.

Path:   jobs.schedule -> here -> zoneinfo (the system's IANA database, or the package `tzdata`)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from jobs.cron import LAST_S, BadSchedule

NAME_CHARS_MAX: Final = 64  # the longest IANA name has 32
# Two changes within this would be taken for none or one; the closest on record are weeks apart.
PROBE_S: Final = 12 * 3600
LOOK_BACK_S: Final = 2 * 86_400  # no clock was ever set by more
LAST_YEAR: Final = datetime.fromtimestamp(LAST_S, UTC).year
_MACHINES_OWN: Final = frozenset({"localtime", "Factory", "posixrules"})
# Some machines have all zones once more in these folders: `right` counts leap seconds.
_FOLDERS_OWN: Final = ("posix/", "right/")


@dataclass(frozen=True, slots=True)
class Stretch:
    """From `start_s` until before `end_s` local time is UTC plus `offset_s`.

    One that goes on beyond the end of a year follows itself, with the same start.
    """

    start_s: int
    end_s: int
    offset_s: int
    before_s: int  # the offset until `start_s`: less after a gap, more after a fold


def check_zone(name: str, field: str = "timezone") -> None:
    """Refuse what is no IANA time zone.

    Raises:
        BadSchedule: names the zone that may have been meant.
    """
    if is_zone(name):
        return
    near = get_close_matches(name[:NAME_CHARS_MAX].replace(" ", "_"), _zones(), n=1, cutoff=0.8)
    by_case = [zone for zone in _zones() if zone.lower() == name.lower()]
    meant = (by_case or near or ["Europe/Madrid"])[0]
    raise BadSchedule(field, f"{name[:80]!r} is no IANA time zone; try {meant}")


def is_zone(name: str) -> bool:
    if len(name) > NAME_CHARS_MAX or name in _MACHINES_OWN or name.startswith(_FOLDERS_OWN):
        return False
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: the name of a folder
        return False
    return True


def offset_s(zone: str, at_s: int) -> int:
    """Return how far local time is ahead of UTC at this instant."""
    return _offset_s(ZoneInfo(zone), at_s)


def stretches(zone: str, from_s: int) -> Iterator[Stretch]:
    """Yield the stretch that holds the instant `from_s`, and those that follow it."""
    start_s = from_s - LOOK_BACK_S
    offset = before = offset_s(zone, start_s)
    for year in range(datetime.fromtimestamp(start_s, UTC).year, LAST_YEAR + 1):
        for at_s, after in _changes(zone, year):
            if at_s <= start_s:
                continue
            if at_s > from_s:
                yield Stretch(start_s, at_s, offset, before)
            start_s, before, offset = at_s, offset, after
        end_s = _new_year_s(year + 1)
        if end_s > from_s:
            yield Stretch(start_s, end_s, offset, before)


@lru_cache(maxsize=8192)
def _changes(zone: str, year: int) -> tuple[tuple[int, int], ...]:
    """Return (instant, offset from then on) of each change in a year, in UTC."""
    info = ZoneInfo(zone)
    found = []
    first_s = _new_year_s(year)
    offset = _offset_s(info, first_s)
    for probe_s in range(first_s + PROBE_S, _new_year_s(year + 1) + 1, PROBE_S):
        after = _offset_s(info, probe_s)
        if after != offset:
            found.append((_first_with(info, after, probe_s - PROBE_S, probe_s), after))
            offset = after
    return tuple(found)


def _first_with(info: ZoneInfo, offset: int, low_s: int, high_s: int) -> int:
    """Return the first second with this offset: not `low_s`, at the latest `high_s`."""
    while high_s - low_s > 1:
        middle_s = (low_s + high_s) // 2
        if _offset_s(info, middle_s) == offset:
            high_s = middle_s
        else:
            low_s = middle_s
    return high_s


@lru_cache(maxsize=256)
def _new_year_s(year: int) -> int:
    return int(datetime(year, 1, 1, tzinfo=UTC).timestamp())


def _offset_s(info: ZoneInfo, at_s: int) -> int:
    delta = datetime.fromtimestamp(at_s, info).utcoffset()
    assert delta is not None, info
    return delta.days * 86_400 + delta.seconds


@lru_cache(maxsize=1)
def _zones() -> tuple[str, ...]:
    return tuple(sorted(available_timezones() - _MACHINES_OWN))
