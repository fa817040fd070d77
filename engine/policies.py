"""How often a run is tried, how soon, beside how many others: as declared, and as it waits.

Path:   api.functions, api.jobs -> Policy (stored with the version) -> `queued` -> run_queue.policy
        commit, flow -> Queued
Never:  touches the store; a policy is a value.
"""

from typing import Final

import msgspec

LANES: Final = "lanes"  # what the journal gathers: lanes in which a run has ended
ATTEMPTS_MAX: Final = 100
JOB_ATTEMPTS: Final = 3  # of a job that does not say; everything else is tried once
BACKOFF_MS: Final = 1_000
BACKOFF_MS_MAX: Final = 3_600_000


class Backoff(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How long to wait between attempts: `exponential` waits 0 to base * 2**n (full jitter)."""

    kind: str = "exponential"  # exponential | fixed
    base_ms: int = BACKOFF_MS
    cap_ms: int = BACKOFF_MS_MAX


class Concurrency(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    limit: int
    key: str = ""  # path into the input; empty: all runs of the function share the limit
    scope: str = "function"  # function | project


class Throttle(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`limit` runs each period, `burst` more at once; what is too many waits."""

    limit: int
    period_ms: int
    burst: int = 0
    key: str = ""


class RateLimit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`limit` runs each period; what is too many is skipped, and its record says so."""

    limit: int
    period_ms: int
    key: str = ""


class Debounce(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Only the last of a burst runs, a quiet period after it; at the latest after `timeout`."""

    period_ms: int
    timeout_ms: int = 0  # 0: however long it takes
    key: str = ""


class Singleton(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One run at a time; a new one is skipped, or cancels the one that runs."""

    mode: str = "skip"  # skip | cancel
    key: str = ""


class Flow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """At most one of concurrency and singleton: both are about who runs beside whom."""

    concurrency: Concurrency | None = None
    throttle: Throttle | None = None
    rate_limit: RateLimit | None = None
    debounce: Debounce | None = None
    singleton: Singleton | None = None


class Batch(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the `queue` handler gets its messages."""

    max_batch_size: int = 10
    max_batch_timeout_ms: int = 1_000
    max_concurrency: int = 0  # batches at a time on one node; 0: as many as come


class Retries(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    max_attempts: int = 1
    backoff: Backoff = Backoff()


class Policy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a version declares for the runs that wait in the queue. Stored as `versions.policy`."""

    retries: Retries | None = None
    flow: Flow | None = None
    batch: Batch | None = None


class Queued(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one queued run carries with it: `run_queue.policy`. Everything default: null there."""

    max_attempts: int = 1
    backoff: Backoff = Backoff()
    dead_letter: bool = False  # whether its last failure becomes a dead letter
    expires_ms: int = 0  # not after; 0: never too late
    queue: str = "default"
    flow: Flow | None = None
    order: bool = False  # its lane is an ordered one: one at a time, by position_ms
    admitted: bool = False  # throttle, rate limit and debounce have let it through
    watched: bool = False  # its schedule wants to know how it ended


_POLICY: Final = msgspec.json.Decoder(Policy)
_QUEUED: Final = msgspec.json.Decoder(Queued)
PLAIN: Final = Queued()
NONE: Final = Policy()


def needs_claim(queued: Queued) -> bool:
    """Say whether something has to be decided when the run is claimed."""
    return queued is not PLAIN and (
        queued.flow is not None or queued.order or queued.expires_ms > 0
    )


def read_policy(text: str) -> Policy:
    return NONE if text == "{}" else _POLICY.decode(text)


def read_queued(text: str | None) -> Queued:
    return PLAIN if text is None else _QUEUED.decode(text)


def write_queued(queued: Queued) -> str | None:
    """Return the JSON for `run_queue.policy`; None when there is nothing to say."""
    return None if queued is PLAIN or queued == PLAIN else msgspec.json.encode(queued).decode()
