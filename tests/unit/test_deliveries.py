"""What becomes of a delivery after an attempt."""

from random import Random

import pytest

from engine.connectors.contract import Refused, Retry, Sent
from engine.deliveries import ATTEMPTS_MAX, ENDED, NEXT, State, decide

NOW = 1_700_000_000_000


def test_a_sent_one_has_ended() -> None:
    """With its time."""
    verdict = decide(1, Sent(200), NOW, Random(1))

    assert (verdict.state, verdict.next_ms, verdict.ended_ms) == (State.DELIVERED, 0, NOW)


def test_a_refused_one_is_not_tried_again() -> None:
    """At the first attempt already."""
    assert decide(1, Refused(400, "x"), NOW, Random(1)).state is State.FAILED


def test_retries_wait_longer_and_longer() -> None:
    """Up to an hour, with full jitter."""
    longest = [
        max(
            decide(attempt, Retry(None, 500, "x"), NOW, Random(seed)).next_ms - NOW
            for seed in range(300)
        )
        for attempt in range(1, ATTEMPTS_MAX)
    ]

    bounds = [1_000, 4_000, 16_000, 64_000, 256_000, 1_024_000, 3_600_000]
    assert all(bound * 0.9 < wait <= bound for wait, bound in zip(longest, bounds, strict=True)), (
        longest
    )


@pytest.mark.parametrize("attempt", [8, 16, 24])
def test_the_last_attempt_fails(attempt: int) -> None:
    """The eighth; and the eighth after it was resent by hand."""
    assert decide(attempt, Retry(None, 500, "x"), NOW, Random(1)).state is State.FAILED
    assert decide(attempt + 1, Retry(None, 500, "x"), NOW, Random(1)).state is State.RETRYING


def test_the_providers_wish_is_honoured_within_a_day() -> None:
    """Retry-After is the least wait."""
    soon = decide(1, Retry(30_000, 429, "x"), NOW, Random(1))
    never = decide(1, Retry(10**12, 429, "x"), NOW, Random(1))

    assert soon.next_ms >= NOW + 30_000
    assert never.next_ms == NOW + 24 * 3_600_000


def test_every_end_can_only_be_left_by_hand() -> None:
    """An ended delivery is queued again or stays."""
    assert all(NEXT[state] == {State.QUEUED} for state in ENDED)
