"""Due times through clock changes: exact instants, and what people are told about them."""

from datetime import UTC, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.cron import BadSchedule, first_match, parse_cron
from jobs.schedule import (
    BOTH,
    FIRST,
    RUN_AFTER,
    SKIP,
    Spec,
    checked,
    explain,
    instants,
    next_after,
    skipped,
)
from jobs.zones import is_zone, stretches

EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - of a clock on the wall
MADRID, NEW_YORK, LORD_HOWE = "Europe/Madrid", "America/New_York", "Australia/Lord_Howe"
# Gaps and folds of 2026: (zone, gap, fold) as the last second before each, UTC.
CHANGES = [
    (MADRID, "2026-03-29T01:00:00Z", "2026-10-25T01:00:00Z"),
    (NEW_YORK, "2026-03-08T07:00:00Z", "2026-11-01T06:00:00Z"),
    (LORD_HOWE, "2026-10-03T15:30:00Z", "2026-04-04T15:00:00Z"),  # by half an hour
]


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def shown(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%m-%dT%H:%M:%S")


def due(spec: Spec, begin: str, end: str) -> list[str]:
    return [shown(at_ms) for at_ms in instants(checked(spec), ms(begin), ms(end))]


def notes(spec: Spec, begin: str, end: str) -> list[tuple[str, str]]:
    found = [explain(spec, at_ms) for at_ms in instants(checked(spec), ms(begin), ms(end))]
    return [(one.local[5:], one.note) for one in found if one.note]


def refusal(spec: Spec) -> tuple[str, str]:
    with pytest.raises(BadSchedule) as caught:
        checked(spec)
    return caught.value.field, caught.value.message


@pytest.mark.parametrize(("zone", "gap", "fold"), CHANGES)
def test_the_changes_are_where_they_are(zone: str, gap: str, fold: str) -> None:
    """By the zone database itself."""
    for text, sign in ((gap, 1), (fold, -1)):
        stretch = next(stretches(zone, ms(text) // 1000))
        assert stretch.start_s * 1000 == ms(text)
        assert (stretch.offset_s - stretch.before_s) * sign > 0


def test_a_fixed_hour_runs_once_right_after_the_gap() -> None:
    """Nobody's daily report is missing on one day of the year."""
    spec = Spec(cron="30 2 * * *", timezone=MADRID)

    assert due(spec, "2026-03-28T00:00Z", "2026-03-31T00:00Z") == [
        "03-28T01:30:00", "03-29T01:00:00", "03-30T00:30:00",
    ]  # fmt: skip
    assert notes(spec, "2026-03-28T00:00Z", "2026-03-31T00:00Z") == [
        ("03-29T03:00:00+02:00", "gap: 02:30 does not exist, runs at 03:00")
    ]


def test_many_times_in_one_gap_run_once() -> None:
    """And not again when the end of the gap is due by itself."""
    spec = Spec(cron="*/10 2,3 * * *", timezone=MADRID)

    assert due(spec, "2026-03-29T00:00Z", "2026-03-29T01:30Z") == [
        "03-29T01:00:00", "03-29T01:10:00", "03-29T01:20:00",
    ]  # fmt: skip
    note = "gap: 02:00, 02:10, 02:20, ... do not exist, runs at 03:00"
    assert notes(spec, "2026-03-29T00:00Z", "2026-03-29T01:30Z")[0][1] == note


def test_a_gap_can_be_skipped() -> None:
    """Then people are told what is left out."""
    spec = Spec(cron="30 2 * * *", timezone=MADRID, gap=SKIP)

    found = skipped(spec, ms("2026-03-28T00:00Z"), ms("2026-03-31T00:00Z"))

    assert due(spec, "2026-03-28T00:00Z", "2026-03-31T00:00Z") == [
        "03-28T01:30:00", "03-30T00:30:00",
    ]  # fmt: skip
    assert [(one.local, one.note) for one in found] == [
        ("2026-03-29T02:30:00", "gap: 02:30 does not exist")
    ]


def test_where_clocks_never_change_nothing_is_skipped() -> None:
    """And that is found out at once, also for the years to come."""
    spec = Spec(cron="30 2 * * *", gap=SKIP)

    assert skipped(spec, 0, ms("2990-01-01T00:00Z")) == []
    assert explain(spec, ms("2026-12-31T02:30Z")).note == ""


def test_a_fixed_hour_runs_the_first_time_of_a_fold() -> None:
    """02:30 comes twice that night."""
    spec = Spec(cron="30 2 * * *", timezone=MADRID)

    assert due(spec, "2026-10-24T00:00Z", "2026-10-27T00:00Z") == [
        "10-24T00:30:00", "10-25T00:30:00", "10-26T01:30:00",
    ]  # fmt: skip
    assert notes(spec, "2026-10-24T00:00Z", "2026-10-27T00:00Z") == [
        ("10-25T02:30:00+02:00", "fold: first of two, the second is left out")
    ]


def test_a_fold_can_run_both_times() -> None:
    """And each says which one it is."""
    spec = Spec(cron="30 2 * * *", timezone=MADRID, fold=BOTH)

    assert notes(spec, "2026-10-24T00:00Z", "2026-10-27T00:00Z") == [
        ("10-25T02:30:00+02:00", "fold: first of two"),
        ("10-25T02:30:00+01:00", "fold: second of two"),
    ]


@pytest.mark.parametrize(("zone", "gap", "fold"), CHANGES)
def test_a_wildcard_hour_goes_by_real_time(zone: str, gap: str, fold: str) -> None:
    """Every half hour is every half hour, whatever the clocks on the wall do."""
    spec = Spec(cron="*/30 * * * *", timezone=zone)

    for change in (gap, fold):
        begin = ms(change) - 3 * 3_600_000
        found = list(islice(instants(checked(spec), begin), 12))
        assert found == [begin + step * 1_800_000 for step in range(12)]


def test_a_wildcard_hour_has_nothing_to_make_up_for() -> None:
    """Every second hour leaves out the one that is in the gap."""
    spec = Spec(cron="0 */2 * * *", timezone=MADRID)

    assert due(spec, "2026-03-28T22:00Z", "2026-03-29T05:00Z") == [
        "03-28T23:00:00", "03-29T02:00:00", "03-29T04:00:00",
    ]  # fmt: skip
    assert skipped(spec, ms("2026-03-28T22:00Z"), ms("2026-03-29T05:00Z")) == []


def test_half_an_hour_is_a_gap_too() -> None:
    """Lord Howe Island goes from 02:00 to 02:30, and back from 02:00 to 01:30."""
    gap = Spec(cron="15 2 * * *", timezone=LORD_HOWE)
    fold = Spec(cron="45 1 * * *", timezone=LORD_HOWE, fold=BOTH)

    assert notes(gap, "2026-10-03T00:00Z", "2026-10-04T00:00Z") == [
        ("10-04T02:30:00+11:00", "gap: 02:15 does not exist, runs at 02:30")
    ]
    assert due(fold, "2026-04-04T12:00Z", "2026-04-04T18:00Z") == [
        "04-04T14:45:00", "04-04T15:15:00",
    ]  # fmt: skip


def test_a_day_that_does_not_exist() -> None:
    """Samoa went from 29 to 31 December 2011."""
    spec = Spec(cron="0 12 * * *", timezone="Pacific/Apia")

    assert due(spec, "2011-12-29T00:00Z", "2011-12-31T00:00Z") == [
        "12-29T22:00:00", "12-30T10:00:00", "12-30T22:00:00",
    ]  # fmt: skip


def test_a_gap_at_midnight() -> None:
    """Cuba's days begin at 01:00 once a year; a daily schedule still runs that day."""
    spec = Spec(cron="@daily", timezone="America/Havana")

    assert notes(spec, "2026-03-07T00:00Z", "2026-03-10T00:00Z") == [
        ("03-08T01:00:00-04:00", "gap: 00:00 does not exist, runs at 01:00")
    ]


def test_an_interval_knows_no_clock_changes() -> None:
    """It counts from its anchor."""
    anchor_ms = ms("2026-03-28T12:00Z")
    spec = Spec(every_ms=5 * 3_600_000, anchor_ms=anchor_ms, timezone=MADRID)

    assert due(spec, "2026-03-28T12:00Z", "2026-03-29T08:01Z") == [
        "03-28T12:00:00", "03-28T17:00:00", "03-28T22:00:00", "03-29T03:00:00", "03-29T08:00:00",
    ]  # fmt: skip
    assert next_after(spec, anchor_ms) == anchor_ms + 5 * 3_600_000


def test_a_single_time_is_local_or_an_instant() -> None:
    """With an offset it means the same everywhere; without one it follows the zone's rules."""
    instant = Spec(at="2026-03-29T02:30:00+01:00", timezone=NEW_YORK)
    in_gap = Spec(at="2026-03-29T02:30:00", timezone=MADRID)
    in_fold = Spec(at="2026-10-25T02:30:00", timezone=MADRID, fold=BOTH)
    year = ("2026-01-01T00:00Z", "2027-01-01T00:00Z")

    assert due(instant, *year) == ["03-29T01:30:00"]
    assert due(in_gap, *year) == ["03-29T01:00:00"]
    assert due(Spec(at=in_gap.at, timezone=MADRID, gap=SKIP), *year) == []
    assert due(in_fold, *year) == ["10-25T00:30:00", "10-25T01:30:00"]
    assert due(Spec(at=in_fold.at, timezone=MADRID), *year) == ["10-25T00:30:00"]


def test_start_and_end_are_kept() -> None:
    """Both count as within."""
    spec = Spec(cron="0 * * * *", start_ms=ms("2026-01-01T02:00Z"), end_ms=ms("2026-01-01T04:00Z"))

    assert due(spec, "2025-01-01T00:00Z", "2027-01-01T00:00Z") == [
        "01-01T02:00:00", "01-01T03:00:00", "01-01T04:00:00",
    ]  # fmt: skip


def test_times_beyond_the_calendar_are_none() -> None:
    """They end, and raise nothing."""
    spec = Spec(cron="0 0 1 1 *", timezone=MADRID)

    assert next_after(spec, ms("9998-06-01T00:00Z")) is None
    assert next_after(spec, -(10**15)) == ms("1970-01-01T00:00Z") + 365 * 86_400_000 - 3_600_000


@pytest.mark.parametrize(
    ("spec", "field", "word"),
    [
        (Spec(), "cron", "none is given"),
        (Spec(cron="* * * * *", every_ms=1000), "cron", "2 are given"),
        (Spec(cron="0 0 30 2 *"), "cron", "never"),
        (Spec(cron="* * * * *", timezone="europe/madrid"), "timezone", "try Europe/Madrid"),
        (Spec(cron="* * * * *", timezone="Europe/Madird"), "timezone", "try Europe/Madrid"),
        (Spec(cron="* * * * *", timezone="../../etc/passwd"), "timezone", "is no IANA"),
        (Spec(cron="* * * * *", timezone="localtime"), "timezone", "is no IANA"),
        (Spec(cron="* * * * *", gap="later"), "dst/gap", "run_after"),
        (Spec(cron="* * * * *", fold="second"), "dst/fold", "both"),
        (Spec(every_ms=999), "every", "1s"),
        (Spec(every_ms=10**12), "every", "366d"),
        (Spec(every_ms=1000, seconds=True), "seconds", "leave it out"),
        (Spec(at="tomorrow"), "at", "2030-01-31T07:00:00"),
        (Spec(at="2026-01-01T00:00:00.5"), "at", "fraction"),
        (Spec(at="0001-01-01T00:00:00+14:00"), "at", "is no time"),
        (Spec(at="1900-01-01T00:00:00"), "at", "1970"),
        (Spec(cron="* * * * *", start_ms=2, end_ms=1), "end_at", "before"),
    ],
)
def test_a_refusal_names_field_and_remedy(spec: Spec, field: str, word: str) -> None:
    """The caller's own field, not ours."""
    found = refusal(spec)

    assert found[0] == field
    assert word in found[1]


def test_the_zone_of_the_machine_is_no_zone() -> None:
    """Nodes may disagree about it."""
    assert is_zone("Etc/GMT+3")
    assert not is_zone("localtime")
    assert not is_zone("right/Europe/Madrid")
    assert not is_zone("posix/UTC")
    assert not is_zone("")
    assert not is_zone("Europe")


# What follows works the same out in another way: from local time to instants, by `fold`.

ZONES = [MADRID, NEW_YORK, LORD_HOWE, "America/Havana", "Africa/Casablanca", "UTC", "Asia/Kolkata"]
CRONS = [
    "30 2 * * *", "*/7 1-3 * * *", "0 0 * * *", "15,45 1,2,3 * * SUN", "59 23 * * *",
    "*/20 * * * *", "5 */3 * * *", "0 3 29 3 *", "0 0-23 * * *", "30 1 1 11 *",
]  # fmt: skip


def by_local_time(spec: Spec, from_ms: int, to_ms: int) -> list[int]:
    cron, zone = parse_cron(spec.cron), ZoneInfo(spec.timezone)
    gap, fold = (SKIP, BOTH) if cron.every_hour else (spec.gap, spec.fold)
    found: set[int] = set()
    local_s: int | None = from_ms // 1000 - 2 * 86_400
    while (local_s := first_match(cron, local_s)) is not None and (
        local_s < to_ms // 1000 + 2 * 86_400
    ):
        wall = EPOCH + timedelta(seconds=local_s)
        both = [wall.replace(tzinfo=zone, fold=one).timestamp() for one in (0, 1)]
        exists = [datetime.fromtimestamp(at_s, zone).replace(tzinfo=None) == wall for at_s in both]
        if all(exists):
            found.update(int(at_s) for at_s in (both if fold == BOTH else both[:1]))
        elif gap == RUN_AFTER:  # the later one of the two readings lies before the change
            assert not any(exists)
            before = int(both[1]) - 86_400
            change = next(one for one in stretches(spec.timezone, before) if one.end_s > both[1])
            found.add(change.end_s)
        local_s += 1
    return sorted(at_s * 1000 for at_s in found if from_ms <= at_s * 1000 < to_ms)


@settings(max_examples=80, deadline=None)
@given(
    cron=st.sampled_from(CRONS),
    zone=st.sampled_from(ZONES),
    gap=st.sampled_from([RUN_AFTER, SKIP]),
    fold=st.sampled_from([FIRST, BOTH]),
    days=st.integers(0, 365),
    minutes=st.integers(0, 1439),
)
def test_instants_are_those_of_local_time(
    cron: str, zone: str, gap: str, fold: str, days: int, minutes: int
) -> None:
    """Whatever the zone, the rule and the day one begins with."""
    spec = Spec(cron=cron, timezone=zone, gap=gap, fold=fold)
    from_ms = ms("2026-01-01T00:00Z") + (days * 1440 + minutes) * 60_000
    to_ms = from_ms + 12 * 86_400_000

    found = list(instants(spec, from_ms, to_ms))

    assert found == by_local_time(spec, from_ms, to_ms)
    assert all(next_after(spec, at_ms - 1) == at_ms for at_ms in found)
