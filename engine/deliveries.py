"""The life of a delivery: one effect on its way to a provider. Pure; the doing is in `outbox`.

Path:   outbox -> `decide` after each attempt; store.deliveries -> NEXT before each change
Never:  reads a clock, a table or the network.
"""

from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Final

from engine.connectors.contract import Answer, Refused, Retry, Sent
from jobs.backoff import backoff_ms


class State(StrEnum):
    """Where a delivery stands. Stored and shown by these names; never renamed."""

    QUEUED = "queued"
    SENDING = "sending"
    DELIVERED = "delivered"
    RETRYING = "retrying"  # an attempt failed, the next one has a time
    FAILED = "failed"
    CANCELLED = "cancelled"
    HELD = "held"  # waits for the operator


NEXT: Final[dict[State, frozenset[State]]] = {
    State.QUEUED: frozenset({State.SENDING, State.CANCELLED, State.HELD}),
    State.SENDING: frozenset(  # QUEUED: handed back before its first attempt was made
        {State.DELIVERED, State.RETRYING, State.FAILED, State.QUEUED}
    ),
    State.RETRYING: frozenset({State.SENDING, State.QUEUED, State.CANCELLED, State.HELD}),
    State.HELD: frozenset({State.QUEUED, State.CANCELLED}),
    State.DELIVERED: frozenset({State.QUEUED}),  # QUEUED, here and below: resent by hand
    State.FAILED: frozenset({State.QUEUED}),
    State.CANCELLED: frozenset({State.QUEUED}),
}
assert NEXT.keys() == set(State)

WAITING: Final = frozenset({State.QUEUED, State.RETRYING})
ENDED: Final = frozenset({State.DELIVERED, State.FAILED, State.CANCELLED})

ATTEMPTS_MAX: Final = 8
BACKOFF_BASE_MS: Final = 1_000
BACKOFF_CAP_MS: Final = 3_600_000
BACKOFF_FACTOR: Final = 4  # not 2: eight attempts would be over after a minute; so after 45 or so
RETRY_AFTER_MS_MAX: Final = 24 * 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a delivery becomes after an attempt."""

    state: State
    next_ms: int  # when to try again; 0 when it has ended
    ended_ms: int | None


def decide(attempt: int, answer: Answer, now_ms: int, rng: Random) -> Verdict:
    """Return what becomes of a delivery after its attempt number `attempt` (from 1).

    Every ATTEMPTS_MAX-th attempt is the last, until it is resent by hand: numbers go on then, so
    that the log of attempts stays one list, and a fresh row of ATTEMPTS_MAX begins.
    """
    assert attempt >= 1, attempt
    match answer:
        case Sent():
            return Verdict(state=State.DELIVERED, next_ms=0, ended_ms=now_ms)
        case Refused():
            return Verdict(state=State.FAILED, next_ms=0, ended_ms=now_ms)
        case Retry(after_ms=after_ms):
            if attempt % ATTEMPTS_MAX == 0:
                return Verdict(state=State.FAILED, next_ms=0, ended_ms=now_ms)
            wait_ms = backoff_ms(
                (attempt - 1) % ATTEMPTS_MAX,
                rng=rng,
                base_ms=BACKOFF_BASE_MS,
                cap_ms=BACKOFF_CAP_MS,
                factor=BACKOFF_FACTOR,
            )
            wait_ms = max(wait_ms, min(after_ms or 0, RETRY_AFTER_MS_MAX))
            return Verdict(state=State.RETRYING, next_ms=now_ms + wait_ms, ended_ms=None)
