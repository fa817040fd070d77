"""What follows an attempt: nothing, another one, or a dead letter."""

from random import Random

import pytest

from engine.policies import Backoff, Queued
from engine.retries import OVER, Again, Over, decide, wait_ms
from runtimes.contract import Outcome

NOW_MS = 1_800_000_000_000
THREE = Queued(max_attempts=3, dead_letter=True, backoff=Backoff(base_ms=1_000, cap_ms=3_000))
FAILURES = [
    one
    for one in Outcome
    if one
    not in {
        Outcome.SUCCEEDED,
        Outcome.CANCELLED,
        Outcome.SKIPPED,
        Outcome.REJECTED,
        Outcome.DEAD_LETTERED,
    }
]


@pytest.mark.parametrize("outcome", FAILURES)
def test_every_kind_of_failure_is_tried_again(outcome: Outcome) -> None:
    """After at most the backoff of that attempt, and never before now."""
    follows = decide(outcome, 2, THREE, NOW_MS, Random(1))

    assert isinstance(follows, Again)
    assert NOW_MS <= follows.due_ms <= NOW_MS + 2_000


@pytest.mark.parametrize("outcome", [Outcome.SUCCEEDED, Outcome.CANCELLED, Outcome.SKIPPED])
def test_what_went_well_or_was_called_off_is_over(outcome: Outcome) -> None:
    """Attempts that are left do not matter."""
    assert decide(outcome, 1, THREE, NOW_MS, Random(1)) == OVER


def test_the_last_failure_is_a_dead_letter_if_the_policy_says_so() -> None:
    """And else just a failure."""
    kept = Queued(max_attempts=3)

    assert decide(Outcome.FAILED, 3, THREE, NOW_MS, Random(1)) == Over(dead=True)
    assert decide(Outcome.FAILED, 3, kept, NOW_MS, Random(1)) == Over(dead=False)


def test_an_attempt_that_would_come_too_late_is_not_made() -> None:
    """A time to live ends the retries, too."""
    policy = Queued(
        max_attempts=3,
        dead_letter=True,
        backoff=Backoff(kind="fixed", base_ms=5_000),
        expires_ms=NOW_MS + 4_999,
    )

    assert decide(Outcome.FAILED, 1, policy, NOW_MS, Random(1)) == Over(dead=True)
    assert decide(Outcome.FAILED, 1, policy, NOW_MS - 1, Random(1)) == Again(NOW_MS + 4_999)


def test_waits_grow_to_the_cap_and_are_spread_from_nothing() -> None:
    """Full jitter: uniform from 0 to base * 2**n, or to the cap."""
    rng, backoff = Random(7), Backoff(base_ms=100, cap_ms=1_000)

    waits = {n: [wait_ms(backoff, n, rng) for _ in range(500)] for n in (1, 2, 3, 4, 9)}

    for attempt, most in ((1, 100), (2, 200), (3, 400), (4, 800), (9, 1_000)):
        assert 0.9 * most < max(waits[attempt]) <= most
        assert min(waits[attempt]) < 0.1 * most


def test_a_fixed_backoff_waits_the_same_each_time() -> None:
    """Whatever the attempt."""
    backoff = Backoff(kind="fixed", base_ms=250)

    assert {wait_ms(backoff, attempt, Random(1)) for attempt in range(1, 20)} == {250}
