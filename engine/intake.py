"""Takes jobs: checks what is asked for, and puts each with its first run into one commit.

Path:   api.submissions -> check_job -> take_job -> journal -> backlog
Never:  answers for itself: the caller answers once the commit is on disk.
"""

import hashlib
import re
import time
from typing import Final

import msgspec

from engine.catalogue import Version
from engine.causality import Above
from engine.durations import duration_ms
from engine.enqueue import Owner, enqueue
from engine.errors import EngineError, Invalid, PayloadTooLarge
from engine.events import check_text, read_time
from engine.flow import due_at, queued_for
from engine.handlers import handler_input
from engine.policies import (
    ATTEMPTS_MAX,
    BACKOFF_MS,
    BACKOFF_MS_MAX,
    JOB_ATTEMPTS,
    Backoff,
    Queued,
    write_queued,
)
from engine.quotas import BACKOFF_S_MAX, JOB_AHEAD_S_MAX, JOB_KEY_CHARS_MAX, PARAMS_BYTES_MAX
from engine.run import Run
from engine.store.jobs import job_row
from engine.store.journal import Commit
from engine.store.run_queue import PRIORITIES
from engine.store.tables import jobs

AHEAD_MS_MAX: Final = JOB_AHEAD_S_MAX * 1000
CAP_MS_MAX: Final = BACKOFF_S_MAX * 1000
BACKOFFS: Final = ("exponential", "fixed")
QUEUE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_encode: Final = msgspec.json.encode


class BackoffAsked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long to wait between attempts, as callers write it."""

    kind: str = "exponential"
    base_seconds: float = BACKOFF_MS / 1000
    cap_seconds: float | None = None


class JobAsked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One job as its caller writes it."""

    function: str
    payload: msgspec.Raw = msgspec.Raw(b"null")
    handler: str | None = None
    run_at: str | None = None
    delay_seconds: float | None = None
    queue: str = "default"
    priority: str = "default"
    idempotency_key: str | None = None
    max_attempts: int | None = None
    backoff: BackoffAsked | None = None
    ttl_seconds: float | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job that may be made; None: as the function's version declares."""

    function: str
    payload: bytes  # JSON
    handler: str | None
    due_ms: int
    queue: str
    priority: int
    key: str | None
    digest: str  # of what was asked, if it has a key
    max_attempts: int | None
    backoff: Backoff | None
    expires_ms: int  # 0: never


def check_job(asked: JobAsked, now_ms: int) -> Job:
    """Return the job that was asked for.

    Raises:
        Invalid: names the field.
        PayloadTooLarge: names the limit.
    """
    payload = bytes(asked.payload)
    if len(payload) > PARAMS_BYTES_MAX:
        raise PayloadTooLarge("the payload", "params_bytes", PARAMS_BYTES_MAX, len(payload))
    check_text(payload, "/payload")
    priority = PRIORITIES.get(asked.priority)
    if priority is None:
        raise Invalid(f"{asked.priority[:40]!r} is none of {', '.join(PRIORITIES)}", "/priority")
    if not QUEUE_NAME.fullmatch(asked.queue):
        raise Invalid(
            f"{asked.queue[:80]!r} must be 1 to 64 letters, digits, '.', '_' or '-'", "/queue"
        )
    if asked.max_attempts is not None and not 1 <= asked.max_attempts <= ATTEMPTS_MAX:
        raise Invalid(f"must be 1 to {ATTEMPTS_MAX}, not {asked.max_attempts}", "/max_attempts")
    due_ms = _due_ms(asked, now_ms)
    expires_ms = 0
    if asked.ttl_seconds is not None:
        expires_ms = due_ms + _within(asked.ttl_seconds, "/ttl_seconds", 1, AHEAD_MS_MAX)
    return Job(
        function=asked.function,
        payload=payload,
        handler=asked.handler,
        due_ms=due_ms,
        queue=asked.queue,
        priority=priority,
        key=_check_key(asked.idempotency_key),
        digest="" if asked.idempotency_key is None else _digest(asked),
        max_attempts=asked.max_attempts,
        backoff=None if asked.backoff is None else check_backoff(asked.backoff, "/backoff"),
        expires_ms=expires_ms,
    )


def check_backoff(asked: BackoffAsked, pointer: str) -> Backoff:
    """Return how to wait between attempts; a cap that is not given is an hour, or the base.

    Raises:
        Invalid: names the field, which stands below `pointer`.
    """
    if asked.kind not in BACKOFFS:
        raise Invalid(f"{asked.kind[:40]!r} is none of {', '.join(BACKOFFS)}", f"{pointer}/kind")
    base_ms = _within(asked.base_seconds, f"{pointer}/base_seconds", 1, CAP_MS_MAX)
    cap_ms = max(BACKOFF_MS_MAX, base_ms)
    if asked.cap_seconds is not None:
        cap_ms = _within(asked.cap_seconds, f"{pointer}/cap_seconds", base_ms, CAP_MS_MAX)
    return Backoff(kind=asked.kind, base_ms=base_ms, cap_ms=cap_ms)


class KeyMismatch(EngineError):
    """The caller's: the key of a job was used before, for another one."""

    code = "idempotency_mismatch"

    def __init__(self, key: str) -> None:
        super().__init__(
            f"idempotency_key {key!r} was used within the last 24 hours for another job; take a "
            "new key for a new job"
        )


def take_job(
    commit: Commit,
    version: Version,
    handler: str,
    job: Job,
    *,
    job_id: str,
    execution_id: str,
    batch_id: str | None,
    owner: Owner,
    now_ms: int,
    above: Above | None = None,
) -> Run:
    """Add to `commit` the job and its first run; return the run, for the backlog.

    Args:
        commit: everything goes in there; nothing runs before it is on disk.
        version: what it runs.
        handler: one of the version's, see `job_handler`.
        job: from `check_job`.
        job_id: of the job, new.
        execution_id: of its first run, new.
        batch_id: of the call that brought several.
        owner: see `enqueue`.
        now_ms: when it was asked for.
        above: the function's run that asked for it, if it has to stand below that.
    """
    queued, lane = queued_as(version, job)
    run = Run(
        execution_id=execution_id,
        version=version,
        handler=handler,
        cause="job",
        limits=version.limits(handler),
        input=handler_input(handler, job.payload),
        created_ms=now_ms,
        created_ns=time.monotonic_ns(),
        root_id=execution_id,
        job_id=job_id,
        lane=lane,
        priority=job.priority,
        due_ms=due_at(queued, now_ms, job.due_ms),
        policy=queued,
    )
    if above is not None:
        run.beneath(above)
    enqueue(commit, run, owner)
    commit.insert(
        jobs,
        job_row(
            job_id=job_id,
            project_id=version.project_id,
            function_id=version.function_id,
            function=version.function,
            handler=handler,
            queue=job.queue,
            priority=job.priority,
            payload=job.payload.decode(),
            policy=write_queued(queued) or "{}",
            run_at_ms=job.due_ms,
            created_ms=now_ms,
            execution_id=execution_id,
            batch_id=batch_id,
        ),
    )
    return run


def queued_as(version: Version, job: Job) -> tuple[Queued, str | None]:
    """Return how a job of this version waits, and in which lane."""
    declared = version.policy.retries
    most = JOB_ATTEMPTS if declared is None else declared.max_attempts
    known = Backoff() if declared is None else declared.backoff
    base = Queued(
        max_attempts=job.max_attempts or most,
        backoff=job.backoff or known,
        dead_letter=True,
        expires_ms=job.expires_ms,
        queue=job.queue,
    )
    return queued_for(
        version.policy, job.payload, version.project_id, version.function_id, base=base
    )


def _due_ms(asked: JobAsked, now_ms: int) -> int:
    """Return when it may begin; a time in the past means at once."""
    if asked.run_at is not None and asked.delay_seconds is not None:
        raise Invalid("give either run_at or delay_seconds", "/run_at")
    if asked.delay_seconds is not None:
        return now_ms + _within(asked.delay_seconds, "/delay_seconds", 0, AHEAD_MS_MAX)
    if asked.run_at is None:
        return now_ms
    try:
        at_ms = read_time(asked.run_at)
    except ValueError as error:
        raise Invalid(str(error), "/run_at") from None
    if at_ms > now_ms + AHEAD_MS_MAX:
        raise Invalid(f"{asked.run_at!r} is more than 365 days away", "/run_at")
    return max(at_ms, now_ms)


def _check_key(key: str | None) -> str | None:
    if key is not None and not (1 <= len(key) <= JOB_KEY_CHARS_MAX and key.isprintable()):
        raise Invalid(f"must be 1 to {JOB_KEY_CHARS_MAX} printable characters", "/idempotency_key")
    return key


def _digest(asked: JobAsked) -> str:
    """Return the same for bodies that ask for the same, however they were written."""
    plain = msgspec.json.decode(_encode(asked))
    return hashlib.sha256(msgspec.json.encode(plain, order="sorted")).hexdigest()


def _within(seconds: float, pointer: str, least_ms: int, most_ms: int) -> int:
    return duration_ms(seconds, pointer, least_ms=least_ms, most_ms=most_ms)
