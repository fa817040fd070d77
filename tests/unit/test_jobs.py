"""What may be asked of a job, and what its life is."""

from typing import Any

import msgspec
import pytest

from engine.errors import Invalid
from engine.intake import Job, JobAsked, check_job
from engine.jobs import ENDED, NEXT, OPEN, Status, before, stored
from engine.policies import Backoff
from engine.quotas import published

NOW = 1_700_000_000_000


def checked(**fields: Any) -> Job:
    asked = msgspec.json.decode(msgspec.json.encode({"function": "f", **fields}), type=JobAsked)
    return check_job(asked, NOW)


def test_a_life_begins_queued_and_comes_to_an_end() -> None:
    """Every status can be reached, and from every one an end."""
    reached = {Status.QUEUED}
    for _ in Status:
        reached |= {later for status in reached for later in NEXT[status]}
    ending = set(ENDED)
    for _ in Status:
        ending |= {status for status in Status if NEXT[status] & ending}

    assert reached == ending == set(Status)
    assert set(Status) == OPEN | ENDED


def test_only_open_jobs_can_be_cancelled_and_only_dead_ones_come_back() -> None:
    """As the table says; running is stored as queued."""
    assert before(Status.CANCELLED) == before(Status.SUCCEEDED) == ("queued",)
    assert before(Status.QUEUED) == ("dead_lettered", "queued")
    assert stored((Status.RUNNING,)) == stored((Status.QUEUED,)) == ("queued",)
    assert "running" not in stored(Status)


def test_a_job_is_due_when_it_says() -> None:
    """After a delay, at a time in any offset, or at once if that time is over."""
    assert checked().due_ms == NOW
    assert checked(delay_seconds=0.5).due_ms == NOW + 500
    assert checked(run_at="2023-11-14T23:13:30+01:00").due_ms == NOW + 10_000
    assert checked(run_at="1970-01-01").due_ms == NOW


def test_a_life_counts_from_the_time_it_is_for() -> None:
    """So that a job for later is not too late before it could begin."""
    assert checked().expires_ms == 0
    assert checked(ttl_seconds=2, delay_seconds=10).expires_ms == NOW + 12_000


def test_a_backoff_is_filled_up() -> None:
    """An hour at most unless another cap is given, or the base is longer."""
    assert checked().backoff is None
    assert checked(backoff={}).backoff == Backoff()
    assert checked(backoff={"base_seconds": 7_200}).backoff == Backoff(
        base_ms=7_200_000, cap_ms=7_200_000
    )
    assert checked(backoff={"kind": "fixed", "cap_seconds": 9}).backoff == Backoff(
        kind="fixed", cap_ms=9_000
    )


def test_the_same_job_has_the_same_digest() -> None:
    """However it was written: order, spaces, defaults; another payload is another job."""
    texts = [
        b'{"function":"f","payload":{"a":1,"b":[]},"idempotency_key":"k"}',
        b'{ "idempotency_key": "k", "payload": {"b": [ ], "a": 1}, "function": "f" }',
        b'{"function":"f","queue":"default","payload":{"a":1,"b":[]},"idempotency_key":"k"}',
        b'{"function":"f","payload":{"a":2,"b":[]},"idempotency_key":"k"}',
        b'{"function":"g","payload":{"a":1,"b":[]},"idempotency_key":"k"}',
    ]

    digests = [check_job(msgspec.json.decode(text, type=JobAsked), NOW).digest for text in texts]

    assert len(set(digests[:3])) == 1
    assert len(set(digests)) == 3
    assert checked().digest == ""


def test_a_payload_is_kept_to_the_byte() -> None:
    """Numbers that no double holds, too."""
    text = b'{"function":"f","payload": 12345678901234567890.10}'

    assert check_job(msgspec.json.decode(text, type=JobAsked), NOW).payload == (
        b"12345678901234567890.10"
    )


def test_a_payload_that_cannot_be_stored_is_refused() -> None:
    """As values of devices are."""
    deep = msgspec.Raw(b"[" * 201 + b"]" * 201)

    with pytest.raises(Invalid, match="nested deeper"):
        check_job(JobAsked(function="f", payload=deep), NOW)


def test_the_limits_are_published() -> None:
    """As they are kept to."""
    limits = published()

    assert limits["jobs"] == {
        "attempts": {"default": 3, "max": 100},
        "ahead_seconds": 31_536_000,
        "ttl_seconds": 31_536_000,
        "backoff_seconds": 86_400,
        "key_chars": 255,
        "wait_seconds": 30,
    }
    assert limits["sizes"]["bulk_runs"] == 100_000
