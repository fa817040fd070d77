"""What becomes of a due time: decided without a table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.fires import TIMES_MAX, Outcome, Overlap, decide, due_times, jitter_ms
from engine.quotas import SCHEDULE_BUFFERED_MAX
from engine.store.schedules import NEVER_MS
from jobs.schedule import Spec

HOUR = 3_600_000
EVERY_SECOND = Spec(every_ms=1_000)


@pytest.mark.parametrize("overlap", Overlap)
def test_where_nothing_overlaps_the_policy_does_not_matter(overlap: Overlap) -> None:
    """It is just queued."""
    assert decide(overlap, 0) is Outcome.QUEUED


@pytest.mark.parametrize(
    ("overlap", "running", "buffered", "outcome"),
    [
        (Overlap.SKIP, 1, 0, Outcome.OVERLAPPED),
        (Overlap.BUFFER_ONE, 1, 0, Outcome.BUFFERED),
        (Overlap.BUFFER_ONE, 0, 1, Outcome.BUFFERED),
        (Overlap.BUFFER_ONE, 1, 1, Outcome.OVERLAPPED),
        (Overlap.BUFFER_ALL, 1, 5, Outcome.BUFFERED),
        (Overlap.BUFFER_ALL, 1, SCHEDULE_BUFFERED_MAX, Outcome.OVERLAPPED),
        (Overlap.CANCEL_OTHER, 3, 0, Outcome.REPLACED),
        (Overlap.ALLOW_ALL, 50, 0, Outcome.QUEUED),
    ],
)
def test_each_policy_has_its_answer(
    overlap: Overlap, running: int, buffered: int, outcome: Outcome
) -> None:
    """By how many have not ended."""
    assert decide(overlap, running, buffered) is outcome


@given(
    due_ms=st.integers(0, 10**13), device=st.text(max_size=20), most_ms=st.integers(0, 86_400_000)
)
def test_jitter_is_a_fact_of_the_due_time(due_ms: int, device: str, most_ms: int) -> None:
    """Within its bounds, and the same on every node."""
    found = jitter_ms("sch_1", due_ms, device, most_ms)

    assert 0 <= found <= most_ms
    assert found == jitter_ms("sch_1", due_ms, device, most_ms)


def test_jitter_spreads() -> None:
    """Over the whole of its bounds, about evenly."""
    found = [jitter_ms(f"sch_{number}", 0, "", 9_999) // 1_000 for number in range(1_000)]

    assert all(70 < found.count(part) < 130 for part in range(10))


def test_due_times_are_parted_by_the_window() -> None:
    """What is exactly as old as it is still runs."""
    found = due_times(Spec(every_ms=HOUR), HOUR, 5 * HOUR, 2 * HOUR)

    assert found.missed_ms == (HOUR, 2 * HOUR)
    assert found.due_ms == (3 * HOUR, 4 * HOUR, 5 * HOUR)
    assert (found.left_out, found.next_ms) == (0, 6 * HOUR)


@given(
    first_s=st.integers(1, 10_000), late_s=st.integers(0, 10_000), catchup_s=st.integers(10, 5_000)
)
def test_every_due_time_is_accounted_for(first_s: int, late_s: int, catchup_s: int) -> None:
    """Over as many transactions as it takes: as due, as missed, or counted as left out."""
    now_s = first_s + late_s
    at_ms, due, missed = first_s * 1_000, 0, 0
    while at_ms <= now_s * 1_000:
        found = due_times(EVERY_SECOND, at_ms, now_s * 1_000, catchup_s * 1_000)
        assert len(found.due_ms) + len(found.missed_ms) <= TIMES_MAX
        assert found.next_ms > at_ms
        due += len(found.due_ms)
        missed += len(found.missed_ms) + found.left_out
        at_ms = found.next_ms

    assert due == min(late_s, catchup_s) + 1
    assert due + missed == late_s + 1


def test_after_the_last_due_time_there_is_none() -> None:
    """The cursor rests."""
    found = due_times(Spec(at="1970-01-01T01:00:00"), HOUR, HOUR, HOUR)

    assert (found.due_ms, found.next_ms) == ((HOUR,), NEVER_MS)
