"""The one place that reads the time of day; everything else is handed a `Clock`."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache

Clock = Callable[[], int]
"""Returns the time now in milliseconds since 1970-01-01T00:00Z."""


def wall_clock() -> int:
    """Return the machine's time now, in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def iso(at_ms: int) -> str:
    """Return RFC 3339 UTC with milliseconds, as JavaScript's `toISOString` writes it.

    `1288310400000` -> `2010-10-29T00:00:00.000Z`.
    """
    seconds, ms = divmod(at_ms, 1000)
    return f"{_second(seconds)}.{ms:03d}Z"


@lru_cache(maxsize=4096)  # of a burst of values most fall into few seconds
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:19]
