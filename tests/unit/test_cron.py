"""Cron lines: what they name, and what is said about those that cannot be read."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.cron import MACROS, BadSchedule, first_match, parse_cron

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)  # a Thursday; local time stands as UTC here
NAMES = {name: at for at, name in enumerate(["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"])}


def times(line: str, count: int, begin: datetime = NEW_YEAR, *, seconds: bool = False) -> list[str]:
    cron = parse_cron(line, seconds=seconds)
    found = []
    at_s = int(begin.timestamp())
    while len(found) < count:
        match = first_match(cron, at_s)
        assert match is not None, line
        found.append(datetime.fromtimestamp(match, UTC).strftime("%m-%d %H:%M:%S"))
        at_s = match + 1
    return found


def refusal(line: str, *, seconds: bool = False) -> str:
    with pytest.raises(BadSchedule) as caught:
        parse_cron(line, seconds=seconds)
    assert caught.value.field == "cron"
    return caught.value.message


@pytest.mark.parametrize(
    ("line", "first"),
    [
        ("@hourly", "01-01 00:00:00"),
        ("30 4 * * *", "01-01 04:30:00"),
        ("0 7 * * mon-fri", "01-01 07:00:00"),
        ("0 0 * * SUN", "01-04 00:00:00"),
        ("0 0 * * 7", "01-04 00:00:00"),
        ("0 0 * * FRI-SUN", "01-02 00:00:00"),
        ("0 0 * FEB-APR *", "02-01 00:00:00"),
        ("15,45 */6 * * *", "01-01 00:15:00"),
        ("5/20 3 * * *", "01-01 03:05:00"),
        ("0 0 10-20/5 * *", "01-10 00:00:00"),
        ("@yearly", "01-01 00:00:00"),
        ("@weekly", "01-04 00:00:00"),
    ],
)
def test_lines_are_read_as_crontab_does(line: str, first: str) -> None:
    """Names in any case, lists, ranges, steps, Sunday as 0 or 7, macros."""
    assert times(line, 1) == [first]


def test_every_macro_is_known() -> None:
    """Each stands for its five fields."""
    for macro, line in MACROS.items():
        assert parse_cron(macro) == parse_cron(line)
        assert parse_cron(macro.upper(), seconds=True) == parse_cron(f"0 {line}", seconds=True)


def test_two_kinds_of_day_are_alternatives() -> None:
    """The 13th, and every Friday: as crontab(5) says of two fields without a star."""
    assert times("0 0 13 * FRI", 4) == [
        "01-02 00:00:00", "01-09 00:00:00", "01-13 00:00:00", "01-16 00:00:00",
    ]  # fmt: skip


def test_a_day_field_with_a_star_narrows_the_other() -> None:
    """Mondays of odd date: crontab(5) again; a step over a star names no days of its own."""
    assert times("0 0 */2 * MON", 3) == ["01-05 00:00:00", "01-19 00:00:00", "02-09 00:00:00"]


def test_seconds_stand_first_when_asked_for() -> None:
    """And only then."""
    assert times("*/20 59 23 * * *", 3, seconds=True) == [
        "01-01 23:59:00", "01-01 23:59:20", "01-01 23:59:40",
    ]  # fmt: skip
    assert "seconds: true" in refusal("*/20 59 23 * * *")
    assert "six" in refusal("59 23 * * *", seconds=True)


def test_leap_days_are_found_however_far() -> None:
    """2100 is no leap year: from 2096 on it is eight years."""
    cron = parse_cron("0 12 29 2 *")
    begin = int(datetime(2096, 3, 1, tzinfo=UTC).timestamp())

    found = first_match(cron, begin)

    assert found == datetime(2104, 2, 29, 12, tzinfo=UTC).timestamp()


def test_the_first_match_may_be_now() -> None:
    """`from` counts."""
    cron = parse_cron("0 0 * * *")
    at_s = int(NEW_YEAR.timestamp())

    assert first_match(cron, at_s) == at_s
    assert first_match(cron, at_s + 1) == at_s + 86_400


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("0 0 L * *", "28-31"),
        ("0 0 * * 5L", "no L"),
        ("0 0 15W * *", "nearest weekday"),
        ("0 0 LW * *", "no L"),
        ("0 0 * * FRI#3", "week of a month"),
        ("0 0 ? * *", "write *"),
        ("0 0 30 FEB *", "FEB never has a day 30"),
        ("0 0 31 4,6 *", "APR, JUN never has a day 31"),
        ("0 0 30 2 */2", "never"),
        ("*/90 * * * *", 'every: "90m"'),
        ("*/0 * * * *", "step of 0"),
        ("60 * * * *", "minute 60 is not within 0-59"),
        ("* 24 * * *", "hour 24 is not within 0-23"),
        ("* * 0 * *", "day of month 0 is not within 1-31"),
        ("* * * 13 *", "month 13 is not within 1-12"),
        ("* * * * 8", "day of week 8 is not within 0-7"),
        ("0 22-2 * * *", "22-23,0-2"),
        ("* * * *", "4 fields; five are needed"),
        ("", "0 fields"),
        ("* * * * * 2030 *", "7 fields"),
        ("0 0 * FOO *", "names JAN-DEC"),
        ("0 0 * * FUNDAY", "names SUN-SAT"),
        (",1 * * * *", "cannot be read"),
        ("1- * * * *", "cannot be read"),
        ("*-5 * * * *", "cannot be read"),
        ("-1 * * * *", "cannot be read"),
        ("1.5 * * * *", "cannot be read"),
        ("H * * * *", "cannot be read"),
        ("\uff11 * * * *", "cannot be read"),
        ("@reboot", "is no macro; there are @hourly"),
        ("@every 5m", 'every: "5m"'),
        ("1," * 300 + "1 * * * *", "at most 500 characters"),
    ],
)
def test_a_refusal_names_field_and_remedy(line: str, word: str) -> None:
    """So that nobody has to guess which of five stars is wrong."""
    assert word in refusal(line)


def test_30_february_with_a_weekday_runs_on_weekdays() -> None:
    """Two kinds of day are alternatives: the impossible one of them is harmless."""
    assert times("0 0 30 2 MON", 1) == ["02-02 00:00:00"]


def test_the_hour_is_a_wildcard_by_its_star() -> None:
    """As in Vixie cron; all 24 written out are the same thing."""
    wild = ["* * * * *", "0 * * * *", "0 */2 * * *", "@hourly", "0 0-23 * * *"]
    named = ["0 0 * * *", "* 2 * * *", "0 1-22 * * *", "0 0-23/2 * * *", "@daily"]

    assert [parse_cron(line).every_hour for line in wild] == [True] * len(wild)
    assert [parse_cron(line).every_hour for line in named] == [False] * len(named)


def a_field(least: int, most: int) -> st.SearchStrategy[str]:
    numbers = st.integers(least, most)
    ranges = st.tuples(numbers, numbers).map(lambda pair: f"{min(pair)}-{max(pair)}")
    stepped = st.tuples(ranges, st.integers(1, most)).map(lambda pair: f"{pair[0]}/{pair[1]}")
    lists = st.lists(st.one_of(numbers.map(str), ranges, stepped), min_size=1, max_size=3)
    return st.one_of(st.just("*"), lists.map(",".join))


LINES = st.tuples(
    a_field(0, 59), a_field(0, 23), a_field(1, 28), a_field(1, 12), a_field(0, 6)
).map(" ".join)  # fmt: skip


def named(field: str, least: int, most: int) -> set[int]:
    """Return what a field means, worked out another way."""
    found: set[int] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        low, _, high = span.partition("-")
        begin, end = (least, most) if span == "*" else (int(low), int(high or low))
        found |= {value for value in range(begin, end + 1) if (value - begin) % int(step or 1) == 0}
    return found


@settings(max_examples=60, deadline=None)
@given(line=LINES, minutes=st.integers(0, 4 * 366 * 1440))
def test_nothing_is_left_out_before_the_first_match(line: str, minutes: int) -> None:
    """Minute by minute, by the words of crontab(5)."""
    fields = line.split()
    minute, hour, day, month, weekday = (
        named(field, *bounds)
        for field, bounds in zip(fields, [(0, 59), (0, 23), (1, 31), (1, 12), (0, 6)], strict=True)
    )
    begin = NEW_YEAR + timedelta(minutes=minutes)
    found = first_match(parse_cron(line), int(begin.timestamp()))
    assert found is not None
    end = datetime.fromtimestamp(found, UTC)

    at = begin
    while at < end:  # days in which nothing can match are skipped as a whole
        days = at.day in day, (at.weekday() + 1) % 7 in weekday
        is_day = any(days) if "*" not in (fields[2], fields[4]) else all(days)
        if at.month not in month or not is_day:
            at = at.replace(hour=0, minute=0) + timedelta(days=1)
            continue
        assert at.hour not in hour or at.minute not in minute, at
        at += timedelta(minutes=1)
    at = end
    days = at.day in day, (at.weekday() + 1) % 7 in weekday
    assert any(days) if "*" not in (fields[2], fields[4]) else all(days)
    assert (at.month in month, at.hour in hour, at.minute in minute) == (True, True, True)
