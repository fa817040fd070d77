"""How long retries wait."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.backoff import backoff_ms


@given(attempt=st.integers(0, 10_000), seed=st.integers())
def test_a_wait_is_never_longer_than_its_cap(attempt: int, seed: int) -> None:
    """However many attempts, the wait lies in [0, min(cap, base * 2**attempt)]."""
    rng = Random(seed)

    wait_ms = backoff_ms(attempt, rng=rng, base_ms=1_000, cap_ms=60_000)

    assert 0 <= wait_ms <= min(60_000, 1_000 * 2 ** min(attempt, 100))


def test_waits_of_one_attempt_are_spread_over_the_whole_range() -> None:
    """Full jitter: what failed together does not come back together."""
    rng = Random(1)

    waits = [backoff_ms(4, rng=rng) for _ in range(2_000)]

    assert min(waits) < 1_000
    assert max(waits) > 15_000
    assert 7_500 < sum(waits) / len(waits) < 8_500


def test_the_same_seed_gives_the_same_waits() -> None:
    """Chance comes from the caller alone."""
    one = [backoff_ms(n, rng=Random(7)) for n in range(10)]
    other = [backoff_ms(n, rng=Random(7)) for n in range(10)]

    assert one == other


def test_a_negative_attempt_is_a_bug() -> None:
    """A caller that counts wrongly is told, not served."""
    with pytest.raises(ValueError, match="counts from 0"):
        backoff_ms(-1, rng=Random(1))
