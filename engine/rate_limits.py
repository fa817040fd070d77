"""Counts the requests of each API key and each device: so many a minute to this node.

Path:   api.raw, api.hot, api.limited -> here -> the answer's headers, or RateLimited
Never:  remembers what does not exist, or whoever has all of its minute again; asks the clock of
        the day.

The generic cell rate algorithm: of each there is one number, the time at which all of its quota
is there again. A whole minute's quota can be used at once; it comes back evenly.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from engine.errors import EngineError

WINDOW_S: Final = 60
_SECOND_NS: Final = 1_000_000_000
_WINDOW_NS: Final = WINDOW_S * _SECOND_NS
_SWEPT_MIN: Final = 1_024  # fewer are not worth looking at

Headers = list[tuple[bytes, bytes]]


class Scope(StrEnum):
    """Whose requests are counted; shown in headers, errors and metrics."""

    KEY = "key"
    DEVICE = "device"


class Standing(NamedTuple):
    """Where a key or a device stands after one of its requests."""

    scope: Scope
    quota: int  # requests a minute
    left: int
    full_s: int  # until all of the quota is there again, rounded up

    def after(self, wait_s: int) -> "Standing":
        """Return it for an answer that says Retry-After: who waits for the quota waits as long."""
        return self._replace(full_s=max(self.full_s, wait_s))


class RateLimited(EngineError):
    """The caller's: the key or the device has used its minute up; nothing was done."""

    code = "rate_limited"

    def __init__(self, scope: Scope, quota: int, wait_s: int) -> None:
        self.standing = Standing(scope, quota, 0, WINDOW_S)
        self.retry_after_s = wait_s
        self.limit = {"name": f"{scope}_requests_per_minute", "value": quota, "used": quota}
        super().__init__(
            f"this {scope} may send {quota} requests a minute to one node, and has; "
            f"try again in {wait_s} s"
        )


class RateLimits:
    """The counts of this node."""

    def __init__(self, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.refused: Counter[Scope] = Counter()
        self._clock_ns = clock_ns
        self._full_ns: dict[Scope, dict[str, int]] = {scope: {} for scope in Scope}
        self._sweep_at: dict[Scope, int] = dict.fromkeys(Scope, _SWEPT_MIN)

    def take(self, scope: Scope, of: str, quota: int) -> Standing:
        """Count one request.

        Args:
            scope: whether `of` is a key or a device.
            of: its id; only of what exists, so nobody fills the memory with made-up ones.
            quota: requests a minute, 1 or more; another one than before holds at once.

        Raises:
            RateLimited: there is none left; this one does not count.
        """
        standing = self.take_if_left(scope, of, quota)
        if standing is None:
            self.refused[scope] += 1
            over_ns = self._over_ns(self._full_ns[scope][of], self._clock_ns(), quota)
            raise RateLimited(scope, quota, max(1, -(-over_ns // _SECOND_NS)))
        return standing

    def take_if_left(self, scope: Scope, of: str, quota: int) -> Standing | None:
        """Count one request as `take` does, or return None: another way will refuse it."""
        now_ns = self._clock_ns()
        counted = self._full_ns[scope]
        step_ns = max(1, _WINDOW_NS // quota)
        full_ns = max(counted.get(of, 0), now_ns) + step_ns
        if full_ns - now_ns > quota * step_ns:
            return None
        if len(counted) >= self._sweep_at[scope]:
            self._sweep(scope, now_ns)
        counted[of] = full_ns
        ahead_ns = full_ns - now_ns
        used = -(-ahead_ns // step_ns)
        return Standing(scope, quota, quota - used, -(-ahead_ns // _SECOND_NS))

    def samples(self) -> dict[tuple[str, ...], float]:
        """Return how many requests were refused, by scope: for metrics."""
        return {(scope.value,): float(self.refused[scope]) for scope in Scope}

    def known_count(self) -> int:
        """Return how many keys and devices are remembered."""
        return sum(map(len, self._full_ns.values()))

    @staticmethod
    def _over_ns(full_ns: int, now_ns: int, quota: int) -> int:
        """Return how long one more request would be too early."""
        step_ns = max(1, _WINDOW_NS // quota)
        return full_ns + step_ns - now_ns - quota * step_ns

    def _sweep(self, scope: Scope, now_ns: int) -> None:
        """Forget who has all of its quota again; the rest have sent something this minute."""
        left = {of: full_ns for of, full_ns in self._full_ns[scope].items() if full_ns > now_ns}
        self._full_ns[scope] = left
        self._sweep_at[scope] = max(_SWEPT_MIN, 2 * len(left))


def headers_of_standings(standings: Sequence[Standing]) -> Headers:
    """Return the headers of an answer: the IETF draft's two (-10), and the three from before it.

    Those three can tell one limit only: that of which the least is left.
    """
    tightest = min(standings, key=lambda one: one.left / one.quota)
    policies = ", ".join(f'"{one.scope}";q={one.quota};w={WINDOW_S}' for one in standings)
    now = ", ".join(f'"{one.scope}";r={one.left};t={one.full_s}' for one in standings)
    return [
        (b"ratelimit-policy", policies.encode()),
        (b"ratelimit", now.encode()),
        (b"ratelimit-limit", b"%d" % tightest.quota),
        (b"ratelimit-remaining", b"%d" % tightest.left),
        (b"ratelimit-reset", b"%d" % tightest.full_s),
    ]


def header_lines(standing: Standing) -> bytes:
    r"""Return the same for one limit as bytes, each line with its end."""
    scope, quota, left, full_s = standing
    name = scope.value.encode()
    return (
        b'ratelimit-policy: "%b";q=%d;w=%d\r\nratelimit: "%b";r=%d;t=%d\r\n'
        b"ratelimit-limit: %d\r\nratelimit-remaining: %d\r\nratelimit-reset: %d\r\n"
        % (name, quota, WINDOW_S, name, left, full_s, quota, left, full_s)
    )
