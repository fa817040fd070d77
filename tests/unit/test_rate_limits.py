"""The count of a minute's requests: how many pass, when they come back, what is remembered."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.rate_limits import (
    RateLimited,
    RateLimits,
    Scope,
    Standing,
    header_lines,
    headers_of_standings,
)

SECOND_NS = 1_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now_ns = 5 * SECOND_NS

    def __call__(self) -> int:
        return self.now_ns


def passed(limits: RateLimits, of: str, quota: int, tries: int) -> int:
    count = 0
    for _ in range(tries):
        try:
            limits.take(Scope.KEY, of, quota)
        except RateLimited:
            continue
        count += 1
    return count


@given(quota=st.integers(1, 5_000))
@settings(max_examples=50, derandomize=True, deadline=None)
def test_a_minutes_quota_passes_at_once_and_not_one_more(quota: int) -> None:
    """Also where the minute cannot be divided by it."""
    limits = RateLimits(Clock())

    assert passed(limits, "key", quota, quota + 3) == quota


def test_the_quota_comes_back_evenly() -> None:
    """After a sixth of the minute there is a sixth of it, after the minute there is all."""
    clock = Clock()
    limits = RateLimits(clock)
    assert passed(limits, "key", 60, 100) == 60

    clock.now_ns += 10 * SECOND_NS
    after_ten_seconds = passed(limits, "key", 60, 100)
    clock.now_ns += 60 * SECOND_NS
    after_a_minute = passed(limits, "key", 60, 100)

    assert (after_ten_seconds, after_a_minute) == (10, 60)


def test_a_refusal_says_when_the_next_one_passes() -> None:
    """The wait is whole seconds, one at least; after it one request passes, before it none."""
    clock = Clock()
    limits = RateLimits(clock)
    passed(limits, "key", 12, 12)  # one every five seconds

    with pytest.raises(RateLimited) as refused:
        limits.take(Scope.KEY, "key", 12)
    clock.now_ns += 4 * SECOND_NS
    too_early = passed(limits, "key", 12, 1)
    clock.now_ns += 1 * SECOND_NS
    in_time = passed(limits, "key", 12, 1)

    assert refused.value.retry_after_s == 5
    assert refused.value.limit == {"name": "key_requests_per_minute", "value": 12, "used": 12}
    assert (too_early, in_time) == (0, 1)
    assert limits.samples() == {("key",): 2.0, ("device",): 0.0}


def test_keys_and_devices_are_counted_apart() -> None:
    """Each key by itself, and a device of the same name as a key by itself."""
    limits = RateLimits(Clock())

    assert passed(limits, "one", 3, 5) == 3
    assert passed(limits, "two", 3, 5) == 3
    assert limits.take(Scope.DEVICE, "one", 3).left == 2


def test_another_quota_holds_at_once() -> None:
    """Who has used all of a small quota has none of a large one either, until time gives it."""
    clock = Clock()
    limits = RateLimits(clock)
    passed(limits, "key", 6, 6)
    clock.now_ns += 30 * SECOND_NS

    assert limits.take(Scope.KEY, "key", 600).left == 299
    assert passed(limits, "key", 6, 10) == 2


def test_only_who_has_sent_something_this_minute_is_remembered() -> None:
    """However many come by, memory holds those of the last minute, twice at most."""
    clock = Clock()
    limits = RateLimits(clock)

    for number in range(60_000):
        limits.take(Scope.DEVICE, f"dev_{number}", 6_000)
        clock.now_ns += SECOND_NS // 100  # each has all of it again before the next comes

    assert limits.known_count() <= 1_024


def test_headers_tell_both_limits_and_the_old_ones_the_tighter() -> None:
    """Both generations of the IETF's headers are there."""
    key, device = Standing(Scope.KEY, 600, 500, 10), Standing(Scope.DEVICE, 60, 1, 58)

    assert headers_of_standings([key, device]) == [
        (b"ratelimit-policy", b'"key";q=600;w=60, "device";q=60;w=60'),
        (b"ratelimit", b'"key";r=500;t=10, "device";r=1;t=58'),
        (b"ratelimit-limit", b"60"),
        (b"ratelimit-remaining", b"1"),
        (b"ratelimit-reset", b"58"),
    ]


def test_the_short_way_says_the_same() -> None:
    """Its lines are those headers."""
    standing = Standing(Scope.DEVICE, 60, 1, 58)

    lines = b"".join(b"%b: %b\r\n" % pair for pair in headers_of_standings([standing]))

    assert header_lines(standing) == lines


def test_a_wait_that_is_told_is_told_everywhere() -> None:
    """Whoever is told to wait for another reason is not told of an earlier time; t is whole."""
    clock = Clock()
    limits = RateLimits(clock)

    standing = limits.take(Scope.KEY, "key", 600)

    assert standing.full_s == 1  # a tenth of a second, rounded up
    assert standing.after(5).full_s == 5
    assert standing.after(5).after(2).full_s == 5
