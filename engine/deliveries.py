"""The life of a delivery: one effect on its way to a provider. Pure; the doing is in `outbox`.

Path:   outbox -> `decide` after each attempt; store.deliveries -> NEXT before each change
Never:  reads a clock, a table or the network.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Any, Final

import msgspec
from msgspec import UNSET

from engine.connectors.contract import (
    Answer,
    CommonSettings,
    Guard,
    Habits,
    Rate,
    Refused,
    Retries,
    Sent,
)


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
    State.SENDING: frozenset(
        {
            State.DELIVERED,
            State.RETRYING,
            State.FAILED,
            State.HELD,  # its answer disables the connection
            State.QUEUED,  # handed back unsent
        }
    ),
    State.RETRYING: frozenset(  # DELIVERED: the provider says it had taken the lost attempt
        {
            State.SENDING,
            State.QUEUED,
            State.CANCELLED,
            State.HELD,
            State.FAILED,  # too old when its turn came at last
            State.DELIVERED,
        }
    ),
    State.HELD: frozenset({State.QUEUED, State.CANCELLED}),
    State.DELIVERED: frozenset(  # QUEUED, here and below: resent by hand
        {State.QUEUED, State.FAILED}  # FAILED: the provider says so, later
    ),
    State.FAILED: frozenset({State.QUEUED, State.DELIVERED}),  # DELIVERED: as above
    State.CANCELLED: frozenset({State.QUEUED}),
}
assert NEXT.keys() == set(State)

WAITING: Final = frozenset({State.QUEUED, State.RETRYING})
ENDED: Final = frozenset({State.DELIVERED, State.FAILED, State.CANCELLED})

RETRY_AFTER_MS_MAX: Final = 24 * 3_600_000
JITTER: Final = 0.2  # of a wait, to both sides: what failed together does not come back together
_HOUR_S: Final = 3_600
_COMMON: Final = frozenset(CommonSettings.__struct_fields__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """How the deliveries of one connection are sent: its settings over its kind's habits."""

    waits_s: tuple[float, ...]  # before attempt 2, 3, ...; the last one again for those beyond
    max_attempts: int
    max_age_s: int
    concurrency: int
    ordered: bool
    rate: Rate | None
    guard: Guard | None


def sending_of(habits: Habits, settings: Mapping[str, Any]) -> Sending:
    """Return what holds for a connection with these (checked) settings."""
    given = {name: value for name, value in settings.items() if name in _COMMON}
    said = msgspec.convert(given, CommonSettings)
    retries = Retries() if said.retries is UNSET else said.retries
    return Sending(
        waits_s=retries.waits_s or habits.waits_s,
        max_attempts=retries.max_attempts or habits.attempts,
        max_age_s=retries.max_age_s or habits.max_age_s,
        concurrency=habits.concurrency if said.concurrency is UNSET else said.concurrency,
        ordered=habits.ordered if said.ordered is UNSET else said.ordered,
        rate=habits.rate if said.rate is UNSET else said.rate,
        guard=habits.guard if said.guard is UNSET else said.guard,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a delivery becomes after an attempt."""

    state: State
    next_ms: int  # when to try again; 0 when it has ended
    ended_ms: int | None
    reason: str | None = None  # why there is no other attempt, when the answer does not say it


def decide(
    attempt: int,
    answer: Answer,
    now_ms: int,
    rng: Random,
    sending: Sending,
    *,
    created_ms: int,
    base_attempts: int = 0,
) -> Verdict:
    """Return what becomes of a delivery after an attempt.

    Args:
        attempt: its number, from 1; numbers go on when it is resent by hand, so that the log of
            attempts stays one list.
        answer: what came of it.
        now_ms: when it ended.
        rng: the only source of chance; tests seed it.
        sending: the connection's.
        created_ms: since when the schedule runs: since the delivery is there, or was resent.
        base_attempts: those before it was resent, which count no more.
    """
    made = attempt - base_attempts
    assert made >= 1, (attempt, base_attempts)
    if isinstance(answer, Sent):
        return Verdict(state=State.DELIVERED, next_ms=0, ended_ms=now_ms)
    if isinstance(answer, Refused):
        return Verdict(state=State.FAILED, next_ms=0, ended_ms=now_ms)
    if made >= sending.max_attempts:
        reason = f"given up after {made} attempt{'s' if made > 1 else ''}, the most there are"
        return Verdict(state=State.FAILED, next_ms=0, ended_ms=now_ms, reason=reason)
    wait_s = sending.waits_s[min(made, len(sending.waits_s)) - 1] if sending.waits_s else 0
    wait_ms = round(wait_s * 1000 * rng.uniform(1 - JITTER, 1 + JITTER))
    next_ms = now_ms + max(wait_ms, min(answer.after_ms or 0, RETRY_AFTER_MS_MAX))
    if is_too_old(next_ms, created_ms, sending):
        reason = f"given up: the next attempt would come {_after(sending)}"
        return Verdict(state=State.FAILED, next_ms=0, ended_ms=now_ms, reason=reason)
    return Verdict(state=State.RETRYING, next_ms=next_ms, ended_ms=None)


def is_too_old(at_ms: int, created_ms: int, sending: Sending) -> bool:
    """Return whether a delivery that was tried before may not be tried again at that time."""
    return at_ms > created_ms + sending.max_age_s * 1000


def too_old(sending: Sending) -> str:
    """Return why a delivery is given up whose turn came too late."""
    return f"given up: its turn came {_after(sending)}"


def _after(sending: Sending) -> str:
    age_s = sending.max_age_s
    told = f"{age_s // _HOUR_S} h" if age_s % _HOUR_S == 0 else f"{age_s} s"
    return f"after {told}, the age from which a message is not tried again"
