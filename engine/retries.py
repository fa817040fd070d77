"""Decides what becomes of a queued run that has ended: done, another attempt, or a dead letter.

Path:   commit -> here
Never:  reads a clock or a table; chance is handed in.
"""

from dataclasses import dataclass
from random import Random
from typing import Final

from engine.policies import Backoff, Queued
from jobs.backoff import backoff_ms
from runtimes.contract import Outcome

GOOD: Final = frozenset({Outcome.SUCCEEDED})
FINAL: Final = frozenset({Outcome.CANCELLED, Outcome.SKIPPED, Outcome.REJECTED})


@dataclass(frozen=True, slots=True)
class Again:
    """Another attempt is to be made."""

    due_ms: int


@dataclass(frozen=True, slots=True)
class Over:
    """It has ended; `dead`: it goes where dead letters are."""

    dead: bool = False


OVER: Final = Over()


def decide(
    outcome: Outcome, attempt: int, policy: Queued, now_ms: int, rng: Random
) -> Again | Over:
    """Return what follows an attempt.

    Args:
        outcome: how it ended.
        attempt: which one it was, from 1.
        policy: of the run.
        now_ms: when it ended.
        rng: the only source of chance.
    """
    if outcome in GOOD or outcome in FINAL:
        return Over()
    if attempt >= policy.max_attempts:
        return Over(dead=policy.dead_letter)
    due_ms = now_ms + wait_ms(policy.backoff, attempt, rng)
    if policy.expires_ms and due_ms > policy.expires_ms:
        return Over(dead=policy.dead_letter)  # too late by then
    return Again(due_ms)


def wait_ms(backoff: Backoff, attempt: int, rng: Random) -> int:
    """Return the wait after attempt number `attempt` (from 1), in milliseconds."""
    if backoff.kind == "fixed":
        return backoff.base_ms
    return backoff_ms(
        attempt - 1, rng=rng, base_ms=backoff.base_ms, cap_ms=max(backoff.cap_ms, backoff.base_ms)
    )
