"""What a gate makes of news, and of clocks."""

import pytest

from engine.connectors.contract import Rate
from engine.deliveries import RETRY_AFTER_MS_MAX
from engine.gates import (
    FAILURES_MAX,
    OPEN_MS_MIN,
    SKEW_MS_MAX,
    TRIAL_LOOK_MS,
    Breaker,
    Gate,
    News,
    Passed,
    Word,
    admit,
    after,
)

NOW = 1_700_000_000_000
DAY_MS = 86_400_000


def opened() -> Gate:
    gate = Gate()
    for _ in range(FAILURES_MAX):
        gate = after(gate, News(word=Word.FAILED, error="x"), NOW)
    return gate


def half_open() -> Gate:
    gate, _ = admit(opened(), None, NOW + OPEN_MS_MIN)
    return gate


def busy(after_ms: int) -> Gate:
    return after(Gate(), News(word=Word.BUSY, after_ms=after_ms), NOW)


def test_nobody_asks_for_more_patience_than_a_day() -> None:
    """`Retry-After: 999999999` would close a connection for decades."""
    assert busy(999_999_999_000).until_ms == NOW + RETRY_AFTER_MS_MAX


@pytest.mark.parametrize("gate", [opened(), half_open(), busy(RETRY_AFTER_MS_MAX)])
def test_a_gate_opens_though_the_clock_was_set_back(gate: Gate) -> None:
    """What lies further ahead than it can says nothing."""
    _, answer = admit(gate, Rate(limit=1, period_s=1), NOW - 2 * DAY_MS)

    assert isinstance(answer, Passed)
    assert answer.is_trial is (gate.breaker is not Breaker.CLOSED)


def test_a_gate_stays_shut_while_clocks_differ_a_little() -> None:
    """Another node's may go behind."""
    behind_ms = NOW - SKEW_MS_MAX

    assert admit(opened(), None, behind_ms)[1] == NOW + OPEN_MS_MIN
    assert admit(busy(RETRY_AFTER_MS_MAX), None, behind_ms)[1] == NOW + RETRY_AFTER_MS_MAX
    assert admit(half_open(), None, NOW)[1] == NOW + TRIAL_LOOK_MS


def test_a_wish_from_a_clock_that_was_set_back_is_not_kept() -> None:
    """The next one is what holds."""
    early_ms = NOW - 10 * DAY_MS
    gate = after(busy(RETRY_AFTER_MS_MAX), News(word=Word.BUSY, after_ms=1_000), early_ms)

    assert gate.until_ms == early_ms + 1_000
