"""How durations are read, and what is said of those that are none."""

from typing import Any

import pytest

from engine.durations import YEAR_MS, duration_ms, duration_text
from engine.errors import Invalid


@pytest.mark.parametrize(
    ("written", "found_ms"),
    [
        (0, 0),
        (30, 30_000),
        (0.25, 250),
        (0.0004, 0),
        ("500ms", 500),
        ("30s", 30_000),
        ("1.5s", 1_500),
        ("5m", 300_000),
        ("2h", 7_200_000),
        ("1d", 86_400_000),
        ("365d", YEAR_MS),
    ],
)
def test_seconds_and_texts_are_read(written: float | str, found_ms: int) -> None:
    """A number is seconds; a text has its unit."""
    assert duration_ms(written, "/every") == found_ms


@pytest.mark.parametrize(
    "written",
    [
        "", "5", "m", "-5m", "5 m", "5M", "1h30m", ".5s", "1e3s", "٣s", "5s\n", "9" * 400 + "s",
        float("nan"), float("inf"), 10**400, True, None, [5],
    ],
)  # fmt: skip
def test_what_is_no_duration_is_refused(written: Any) -> None:
    """With the pointer, the text that was found, and how to write one."""
    with pytest.raises(Invalid, match="is no duration; write seconds") as refused:
        duration_ms(written, "/flow/throttle/period")

    assert refused.value.problems[0].pointer == "/flow/throttle/period"


@pytest.mark.parametrize("written", [-1, 0, 0.9, "999ms", "61s", "2m", 10**300])
def test_bounds_are_kept_and_told(written: float | str) -> None:
    """Both are in the message, in the words of the one who wrote."""
    with pytest.raises(Invalid, match="must be 1s to 1m, not"):
        duration_ms(written, "/every", least_ms=1_000, most_ms=60_000)


def test_the_bounds_themselves_are_allowed() -> None:
    """Least and most are within."""
    assert duration_ms(1, "/every", least_ms=1_000, most_ms=60_000) == 1_000
    assert duration_ms("1m", "/every", least_ms=1_000, most_ms=60_000) == 60_000


@pytest.mark.parametrize("ms", [0, 1, 999, 1_000, 90_000, 60_000, 7_200_000, YEAR_MS, 86_400_001])
def test_what_is_shown_can_be_written(ms: int) -> None:
    """The text of a duration is read as the same duration."""
    assert duration_ms(duration_text(ms), "/every") == ms
