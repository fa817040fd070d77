"""What all nodes ask before they send through a connection: its rate, breaker and switch. Pure.

Path:   store.deliveries.claim -> `admit` for each delivery; store.gates.note -> `after`
Never:  reads a clock or a table.

The breaker is closed (all pass), open (nothing passes before a time) or half open (one attempt is
on its way, which decides). Attempts that began before it opened decide nothing any more.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from math import ceil
from typing import Final

from engine.connectors.contract import Rate
from engine.deliveries import RETRY_AFTER_MS_MAX

FAILURES_MAX: Final = 5  # in a row, until the breaker opens
OPEN_MS_MIN: Final = 10_000  # twice as long after each trial that fails
OPEN_MS_MAX: Final = 600_000
TRIAL_MS: Final = 60_000  # the longest attempt, and then some: who made it may have died
TRIAL_LOOK_MS: Final = 1_000  # how soon others look whether the trial is over
DISABLED_AFTER_MS: Final = 5 * 86_400_000  # of nothing but failures
SKEW_MS_MAX: Final = 60_000  # between the clocks of two nodes
AHEAD_MS: Final = 100  # places of a rate that are given out before their time, by one claim


class Breaker(StrEnum):
    """Stored and shown by these names; never renamed."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


_SHUT_MS_MAX: Final = {  # closed: a provider asked for patience
    Breaker.CLOSED: RETRY_AFTER_MS_MAX,
    Breaker.OPEN: OPEN_MS_MAX,
    Breaker.HALF_OPEN: TRIAL_MS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What all nodes know of a connection; of one that never made trouble, this."""

    next_ms: float = 0  # the rate's next free place
    breaker: Breaker = Breaker.CLOSED
    until_ms: int = 0  # nothing passes before; half open: the trial's time is over then
    failures: int = 0  # in a row
    since_ms: int | None = None  # of the first of these
    last_error: str | None = None
    disabled: str | None = None  # why nothing passes until somebody enables it

    def is_shut(self, now_ms: int) -> bool:
        """Return whether nothing passes; what lies too far ahead says a clock that was set back."""
        return now_ms < self.until_ms <= now_ms + _SHUT_MS_MAX[self.breaker] + SKEW_MS_MAX

    @property
    def is_troubled(self) -> bool:
        """Return whether a success is news."""
        return self.failures > 0 or self.breaker is not Breaker.CLOSED


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """One attempt may be made."""

    at_ms: int  # not before
    is_trial: bool


def admit(gate: Gate, rate: Rate | None, now_ms: int) -> tuple[Gate, Passed | int]:
    """Ask for one attempt.

    Args:
        gate: as it is stored, in a transaction that has locked it if it changes.
        rate: the connection's.
        now_ms: the time.

    Returns:
        The gate from now on, and the pass; or when to ask again.
    """
    if gate.is_shut(now_ms):
        half_open = gate.breaker is Breaker.HALF_OPEN
        return gate, min(gate.until_ms, now_ms + TRIAL_LOOK_MS) if half_open else gate.until_ms
    at_ms = now_ms
    if rate is not None:
        between_ms = rate.period_s * 1000 / rate.limit
        place_ms = max(now_ms, gate.next_ms)
        if place_ms > now_ms + AHEAD_MS + between_ms + SKEW_MS_MAX:
            place_ms = now_ms  # another rate held then, or a clock was set back
        if place_ms > now_ms + AHEAD_MS:
            return gate, ceil(place_ms) - AHEAD_MS // 2
        at_ms = ceil(place_ms)
        gate = replace(gate, next_ms=place_ms + between_ms)
    is_trial = gate.breaker is not Breaker.CLOSED
    if is_trial:
        gate = replace(gate, breaker=Breaker.HALF_OPEN, until_ms=now_ms + TRIAL_MS)
    return gate, Passed(at_ms=at_ms, is_trial=is_trial)


class Word(StrEnum):
    """What an attempt tells about the connection."""

    WELL = "well"  # the provider took it, or refused this one message
    BUSY = "busy"  # 429: it answers, and asks for patience
    FAILED = "failed"  # no answer, or 5xx
    DISABLES = "disables"  # nothing will be taken until somebody looks after it
    NOTHING = "nothing"  # it was not asked


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What came of an attempt."""

    word: Word
    is_trial: bool = False
    error: str | None = None
    after_ms: int = 0  # busy: for how long


def after(gate: Gate, news: News, now_ms: int) -> Gate:
    """Return the gate after an attempt."""
    match news.word:
        case Word.WELL:
            return replace(
                gate,
                breaker=Breaker.CLOSED,
                # Of a closed one it is the provider's wish, which this attempt did not hear.
                until_ms=gate.until_ms if gate.breaker is Breaker.CLOSED else 0,
                failures=0,
                since_ms=None,
                last_error=news.error,
            )
        case Word.BUSY:
            if gate.breaker is not Breaker.CLOSED and not news.is_trial:
                return gate
            is_kept = gate.breaker is Breaker.CLOSED and gate.is_shut(now_ms)
            after_ms = min(news.after_ms, RETRY_AFTER_MS_MAX)
            return replace(
                gate,
                breaker=Breaker.CLOSED,
                until_ms=max(gate.until_ms if is_kept else 0, now_ms + after_ms),
                failures=0 if news.is_trial else gate.failures,
                last_error=news.error,
            )
        case Word.FAILED:
            return _failed(gate, news, now_ms)
        case Word.DISABLES:
            return replace(gate, last_error=news.error, disabled=gate.disabled or news.error)
        case Word.NOTHING:
            is_over = gate.breaker is Breaker.HALF_OPEN and news.is_trial
            return replace(gate, until_ms=now_ms) if is_over else gate


def _failed(gate: Gate, news: News, now_ms: int) -> Gate:
    gate = replace(gate, last_error=news.error)
    if gate.breaker is Breaker.OPEN or (gate.breaker is Breaker.HALF_OPEN and not news.is_trial):
        return gate
    since_ms = now_ms if gate.since_ms is None else gate.since_ms
    gate = replace(gate, failures=gate.failures + 1, since_ms=since_ms)
    if gate.failures < FAILURES_MAX:
        return gate
    doublings = min(gate.failures - FAILURES_MAX, OPEN_MS_MAX // OPEN_MS_MIN)
    gate = replace(
        gate,
        breaker=Breaker.OPEN,
        until_ms=now_ms + min(OPEN_MS_MIN << doublings, OPEN_MS_MAX),
    )
    if gate.disabled is None and now_ms - since_ms >= DISABLED_AFTER_MS:
        days = (now_ms - since_ms) // 86_400_000
        why = f"nothing but failures for {days} days, the last one: {news.error}"
        gate = replace(gate, disabled=why)
    return gate
