"""Says how long to wait before trying again.

Path:   engine.deliveries, jobs.retry -> here
Never:  sleeps, or reads a clock.
"""

from random import Random
from typing import Final

BASE_MS: Final = 1_000
CAP_MS: Final = 3_600_000
FACTOR: Final = 2
_EXPONENT_MAX: Final = 64  # beyond it every cap is reached; keeps the power small


def backoff_ms(
    attempt: int,
    *,
    rng: Random,
    base_ms: int = BASE_MS,
    cap_ms: int = CAP_MS,
    factor: int = FACTOR,
) -> int:
    """Return the wait before retry number `attempt`, in milliseconds.

    Uniform in [0, min(cap_ms, base_ms * factor**attempt)] ("full jitter"), so that what failed
    together does not come back together.

    Args:
        attempt: retries already made, from 0.
        rng: the only source of chance; tests seed it.
        base_ms: the longest first wait.
        cap_ms: the longest wait of all.
        factor: how much longer each next wait may be.

    Raises:
        ValueError: `attempt` is negative: a caller's bug, never guest input.

    Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    assert 0 < base_ms <= cap_ms, (base_ms, cap_ms)
    assert factor > 1, factor
    if attempt < 0:
        raise ValueError(f"attempt is {attempt}; it counts from 0")
    return rng.randint(0, min(cap_ms, base_ms * factor ** min(attempt, _EXPONENT_MAX)))
