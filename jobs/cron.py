"""Reads cron lines, and says which seconds of a clock on the wall they name.

Path:   jobs.schedule -> `parse_cron` -> Cron -> `first_match`
Never:  knows a time zone: local time here has no gaps and no folds (see jobs.schedule).
Five fields as crontab(5) has them, names, lists, ranges, steps and macros; seconds only on request.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from threading import get_ident
from typing import Final

from croniter import CroniterBadDateError, croniter

TEXT_CHARS_MAX: Final = 500
LAST_S: Final = 221_845_392_000  # 9000-01-01, the end of what is computed
MACROS: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_MONTHS: Final = (
    "JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC",
)  # fmt: skip
_DAYS: Final = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_DAYS_OF_MONTH: Final = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_HOURS_COUNT: Final = 24
_SUNDAY: Final = 7  # as crontab(5) may call it, besides 0
_PART: Final = re.compile(r"(\*|[A-Z]+|\d{1,4})(?:-([A-Z]+|\d{1,4}))?(?:/(\d{1,4}))?", re.ASCII)


class BadSchedule(ValueError):
    """A field of a schedule that its author has to correct; the message says how."""

    def __init__(self, field: str, message: str) -> None:
        self.field = field
        self.message = message
        super().__init__(f"{field}: {message}")


@dataclass(frozen=True, slots=True)
class Cron:
    """One line, ready for the arithmetic."""

    numbers: str  # as croniter takes it: no names, no macros
    has_seconds: bool
    every_hour: bool  # the hour field is a wildcard: it goes by real time where clocks change
    either_day: bool  # day of month or day of week, as both are named; else both have to fit


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    least: int
    last: int  # of what * means
    unit: str = ""  # for `every`, which is what a step that is too long wants
    words: tuple[str, ...] = ()  # the names of least, least + 1, ...
    most: int = 0  # if more than `last` can be written

    @property
    def end(self) -> int:
        return self.most or self.last


_SECOND: Final = _Field("second", 0, 59, "s")
_FIELDS: Final = (
    _Field("minute", 0, 59, "m"),
    _Field("hour", 0, 23, "h"),
    _Field("day of month", 1, 31, "d"),
    _Field("month", 1, 12, words=_MONTHS),
    _Field("day of week", 0, 6, "d", words=_DAYS, most=_SUNDAY),
)
_NOT_CRON: Final = {  # what other systems' dialects have; crontab(5) does not
    re.compile(r"\?"): "there is no ?; write *",
    re.compile("#"): "there is no # for the week of a month; name the weekday, and let the code "
    "return unless the date is in that week",
    re.compile(r"^L|\dL$|[A-Z]L$"): "there is no L for the last day; name 28-31, and let the code "
    "return unless tomorrow is the 1st",
    re.compile(r"W$"): "there is no W for the nearest weekday; name the days, and let the code "
    "check the date",
}


@lru_cache(maxsize=8192)
def parse_cron(text: str, *, seconds: bool = False) -> Cron:
    """Return the line as it is computed with.

    Args:
        text: five fields or a macro.
        seconds: there is a field of seconds before the five.

    Raises:
        BadSchedule: names what is wrong with which field.
    """
    if len(text) > TEXT_CHARS_MAX:
        raise _bad(f"must have at most {TEXT_CHARS_MAX} characters, has {len(text)}")
    fields = _split(text, seconds=seconds)
    kinds = (_SECOND, *_FIELDS) if seconds else _FIELDS
    found = [_values(field, kind) for field, kind in zip(fields, kinds, strict=True)]
    hours, days, months = found[-4:-1]
    free_day, free_weekday = ("*" in fields[at] for at in (-3, -1))
    if free_day or free_weekday:
        _check_dates(days, months)
    return Cron(
        numbers=" ".join(
            "*" if field == "*" else ",".join(map(str, sorted(values)))
            for field, values in zip(fields, found, strict=True)
        ),
        has_seconds=seconds,
        every_hour=fields[-4].startswith("*") or len(hours) == _HOURS_COUNT,
        either_day=not (free_day or free_weekday),
    )


def first_match(cron: Cron, local_s: int) -> int | None:
    """Return the first second of local time, from `local_s` on, that the line names.

    Seconds count from 1970-01-01T00:00 of the same clock on the wall. None: there is none in the
    next 50 years.
    """
    if local_s > LAST_S:
        return None
    # croniter's iterators remember where they are, so each thread has its own.
    following = _iterator(cron.numbers, cron.has_seconds, cron.either_day, get_ident())
    try:
        return int(following(float, start_time=local_s - 1.0))
    except (CroniterBadDateError, OverflowError):  # the latter: beyond the year 9999
        return None


@lru_cache(maxsize=8192)
def _iterator(
    numbers: str, has_seconds: bool, either_day: bool, _thread: int
) -> Callable[..., float]:
    iterator = croniter(
        numbers, 0.0, ret_type=float, day_or=either_day, second_at_beginning=has_seconds
    )
    following: Callable[..., float] = iterator.get_next
    return following


def _split(text: str, *, seconds: bool) -> list[str]:
    line = text.strip()
    if line.startswith("@"):
        line = ("0 " if seconds else "") + _macro(line)
    fields = line.upper().split()
    wanted = 6 if seconds else 5
    if len(fields) == wanted:
        return fields
    order = "minute hour day-of-month month day-of-week"
    if seconds:
        raise _bad(f"has {len(fields)} fields; with seconds there are six: second {order}")
    hint = ", and seconds: true if the first one is seconds" if len(fields) == wanted + 1 else ""
    raise _bad(f"has {len(fields)} fields; five are needed: {order}{hint}")


def _macro(line: str) -> str:
    known = MACROS.get(line.lower())
    if known is not None:
        return known
    word, _, rest = line.partition(" ")
    if word == "@every":
        raise _bad(f'there is no @every; leave cron out and write every: "{rest.strip()[:20]}"')
    raise _bad(f"{word[:20]!r} is no macro; there are {', '.join(MACROS)}")


def _values(text: str, field: _Field) -> set[int]:
    values: set[int] = set()
    for part in text.split(","):
        values |= _part(part, field)
    return {value if value <= field.last else 0 for value in values}


def _part(part: str, field: _Field) -> set[int]:
    match = _PART.fullmatch(part)
    if match is None or (match[1] == "*" and match[2] is not None):
        raise _refused(part, field)
    first, last, step = match.groups()
    if first == "*":
        begin, end = field.least, field.last
    else:
        begin = end = _value(first, part, field)
        if last is not None:
            end = _value(last, part, field)
        elif step is not None:  # 5/15: from 5 on
            end = field.last
        if end == 0 < begin and field.end == _SUNDAY:  # FRI-SUN
            end = _SUNDAY
    if end < begin:
        raise _bad(
            f"{field.name} {part!r} runs backwards; write two ranges: "
            f"{begin}-{field.last},{field.least}-{end}"
        )
    return set(range(begin, end + 1, _step(step, part, field)))


def _value(word: str, part: str, field: _Field) -> int:
    if not word.isdigit():
        if word not in field.words:
            raise _refused(part, field)
        return field.least + field.words.index(word)
    value = int(word)
    if not field.least <= value <= field.end:
        raise _bad(f"{field.name} {value} is not within {field.least}-{field.end}")
    return value


def _step(step: str | None, part: str, field: _Field) -> int:
    if step is None:
        return 1
    count = int(step)
    if count == 0:
        raise _bad(f"{field.name} {part!r} has a step of 0; the least is 1")
    if count > field.last:
        hint = f'; for such an interval use every: "{count}{field.unit}"' if field.unit else ""
        raise _bad(f"{field.name} {part!r} has a step of more than {field.last}{hint}")
    return count


def _check_dates(days: set[int], months: set[int]) -> None:
    if any(min(days) <= _DAYS_OF_MONTH[month - 1] for month in months):
        return
    named = ", ".join(_MONTHS[month - 1] for month in sorted(months))
    raise _bad(f"{named} never has a day {min(days)}: it would never run")


def _refused(part: str, field: _Field) -> BadSchedule:
    shown = f"{field.name} {part[:20]!r}"
    for sign, remedy in _NOT_CRON.items():
        if sign.search(part):
            return _bad(f"{shown}: {remedy}")
    words = f", names {field.words[0]}-{field.words[-1]}" if field.words else ""
    return _bad(
        f"{shown} cannot be read; write *, numbers {field.least}-{field.end}{words}, lists a,b, "
        "ranges a-b or steps */n"
    )


def _bad(message: str) -> BadSchedule:
    return BadSchedule("cron", message)
