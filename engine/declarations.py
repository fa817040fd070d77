"""Reads what a version declares for its queued runs, and shows it again: retries, flow, queue.

Path:   api.uploads -> functions -> here -> Policy, stored with it; api.versions -> `shown`
Never:  fills in what was not said: a part that is left out is the latest version's.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from engine.durations import YEAR_MS, duration_ms, duration_text
from engine.errors import Invalid
from engine.intake import BackoffAsked, check_backoff
from engine.policies import (
    ATTEMPTS_MAX,
    JOB_ATTEMPTS,
    NONE,
    Backoff,
    Batch,
    Concurrency,
    Debounce,
    Flow,
    Policy,
    RateLimit,
    Retries,
    Singleton,
    Throttle,
)
from engine.quotas import (
    BACKOFF_S_MAX,
    CONCURRENCY_MAX,
    FLOW_KEY_CHARS_MAX,
    FLOW_PERIOD_S_MAX,
    QUEUE_BATCH_MAX,
    QUEUE_TIMEOUT_S_MAX,
)

SCOPES: Final = ("function", "project")
MODES: Final = ("skip", "cancel")
PARTS: Final = ("retries", "flow", "queue")
_QUOTES: Final = "'\""
_QUEUE: Final = "queue"
_Said = Mapping[str, Any]


def declared(
    retries: _Said | None, flow: _Said | None, queue: _Said | None, latest: Policy = NONE
) -> Policy:
    """Return the policy of a version; None: as in the latest one, `{}`: none.

    Raises:
        Invalid: names the field, what it may be, and what to do.
    """
    found = latest
    if retries is not None:
        found = msgspec.structs.replace(found, retries=_retries(retries))
    if flow is not None:
        found = msgspec.structs.replace(found, flow=_flow(flow))
    if queue is not None:
        found = msgspec.structs.replace(found, batch=_batch(queue))
        tried = _tried(queue)
        if tried is not None and retries:
            name = next(name for name in ("max_retries", "retry_delay") if name in queue)
            raise Invalid(
                f"{name} and retries say the same: leave one of them out", f"/queue/{name}"
            )
        if tried is not None:
            found = msgspec.structs.replace(found, retries=tried)
    return NONE if found == NONE else found


def for_handlers(policy: Policy, handlers: Sequence[str], *, said: bool) -> Policy:
    """Return the policy as far as a version with these handlers has use for it.

    Raises:
        Invalid: `queue` was `said`, and there is no such handler.
    """
    if policy.batch is None or _QUEUE in handlers:
        return policy
    if said:
        raise Invalid(
            f"is for a version with the handler queue, and this one has {', '.join(handlers)}: "
            "add the handler, or leave queue out",
            "/queue",
        )
    found = msgspec.structs.replace(policy, batch=None)
    return NONE if found == NONE else found


def shown(policy: Policy) -> dict[str, Any]:
    """Return the fields `retries`, `flow` and `queue` as they may be sent again; None: not said."""
    retries, flow, batch = policy.retries, policy.flow, policy.batch
    return {
        "retries": None if retries is None else _shown_retries(retries),
        "flow": None if flow is None else _shown_flow(flow),
        "queue": None if batch is None else _shown_batch(batch),
    }


# -- What is read


def _retries(said: _Said) -> Retries | None:
    if not said:
        return None
    most = said.get("max_attempts")
    backoff = said.get("backoff")
    return Retries(
        max_attempts=JOB_ATTEMPTS
        if most is None
        else _whole(most, 1, ATTEMPTS_MAX, "/retries/max_attempts"),
        backoff=Backoff()
        if backoff is None
        else check_backoff(BackoffAsked(**backoff), "/retries/backoff"),
    )


def _flow(said: _Said) -> Flow | None:
    if not said:
        return None
    if said.get("concurrency") is not None and said.get("singleton") is not None:
        raise Invalid(
            "singleton and concurrency both say who runs beside whom: leave one of them out; a "
            "singleton is a concurrency of 1 whose later runs do not wait",
            "/flow/singleton",
        )
    rate_limit = said.get("rate_limit")
    return Flow(
        concurrency=_concurrency(said.get("concurrency")),
        throttle=_throttle(said.get("throttle")),
        rate_limit=_rate_limit(rate_limit),
        debounce=_debounce(said.get("debounce")),
        singleton=_singleton(said.get("singleton")),
    )


def _concurrency(said: _Said | None) -> Concurrency | None:
    if said is None:
        return None
    at = "/flow/concurrency"
    return Concurrency(
        limit=_whole(said["limit"], 1, CONCURRENCY_MAX, f"{at}/limit"),
        key=_key(said, at),
        scope=_one_of(said.get("scope"), SCOPES, f"{at}/scope"),
    )


def _throttle(said: _Said | None) -> Throttle | None:
    if said is None:
        return None
    at = "/flow/throttle"
    limit, period_ms = _rate(said, at)
    burst = said.get("burst")
    return Throttle(
        limit=limit,
        period_ms=period_ms,
        burst=0 if burst is None else _whole(burst, 0, limit, f"{at}/burst"),
        key=_key(said, at),
    )


def _rate_limit(said: _Said | None) -> RateLimit | None:
    if said is None:
        return None
    at = "/flow/rate_limit"
    limit, period_ms = _rate(said, at)
    return RateLimit(limit=limit, period_ms=period_ms, key=_key(said, at))


def _rate(said: _Said, at: str) -> tuple[int, int]:
    period_ms = _duration_ms(said["period"], f"{at}/period", least_ms=1)
    limit = said["limit"]
    if not 1 <= limit <= period_ms:
        raise Invalid(
            f"must be 1 to {period_ms}, one a millisecond of the period, not {limit}", f"{at}/limit"
        )
    return limit, period_ms


def _debounce(said: _Said | None) -> Debounce | None:
    if said is None:
        return None
    at = "/flow/debounce"
    period_ms = _duration_ms(said["period"], f"{at}/period", least_ms=1)
    timeout = said.get("timeout")
    timeout_ms = 0
    if timeout is not None:  # shorter than one period it would say nothing
        timeout_ms = _duration_ms(timeout, f"{at}/timeout", least_ms=period_ms)
    return Debounce(period_ms=period_ms, timeout_ms=timeout_ms, key=_key(said, at))


def _singleton(said: _Said | None) -> Singleton | None:
    if said is None:
        return None
    at = "/flow/singleton"
    return Singleton(mode=_one_of(said.get("mode"), MODES, f"{at}/mode"), key=_key(said, at))


def _batch(said: _Said) -> Batch:
    plain = Batch()
    size, concurrency = said.get("max_batch_size"), said.get("max_concurrency")
    timeout = said.get("max_batch_timeout")
    return Batch(
        max_batch_size=plain.max_batch_size
        if size is None
        else _whole(size, 1, QUEUE_BATCH_MAX, "/queue/max_batch_size"),
        max_batch_timeout_ms=plain.max_batch_timeout_ms
        if timeout is None
        else duration_ms(timeout, "/queue/max_batch_timeout", most_ms=QUEUE_TIMEOUT_S_MAX * 1000),
        max_concurrency=0
        if concurrency is None
        else _whole(concurrency, 1, CONCURRENCY_MAX, "/queue/max_concurrency"),
    )


def _tried(said: _Said) -> Retries | None:
    """Return what Cloudflare's names of retries say: tries after the first, a fixed wait."""
    again, delay = said.get("max_retries"), said.get("retry_delay")
    if again is None and delay is None:
        return None
    most = JOB_ATTEMPTS
    if again is not None:
        most = 1 + _whole(again, 0, ATTEMPTS_MAX - 1, "/queue/max_retries")
    if delay is None:
        return Retries(max_attempts=most)
    wait_ms = duration_ms(delay, "/queue/retry_delay", most_ms=BACKOFF_S_MAX * 1000)
    return Retries(max_attempts=most, backoff=Backoff(kind="fixed", base_ms=max(1, wait_ms)))


def _key(said: _Said, at: str) -> str:
    key = said.get("key")
    if key is None:
        return ""
    if not (1 <= len(key) <= FLOW_KEY_CHARS_MAX and key.isprintable() and _can_be_key(key)):
        raise Invalid(
            f"must be a path into the input, like payload.customer.id, or a word in quotes; 1 to "
            f"{FLOW_KEY_CHARS_MAX} printable characters",
            f"{at}/key",
        )
    return str(key)


def _can_be_key(key: str) -> bool:
    """Return whether it is a word in quotes, closed again, or a path none of whose names is empty.

    Any other would be missing in every input, and so be one key for all of them.
    """
    if key[0] in _QUOTES or key[-1] in _QUOTES:
        return len(key) > len("''") and key[0] == key[-1]
    return all(key.split("."))


def _one_of(said: str | None, known: Sequence[str], pointer: str) -> str:
    if said is None:
        return known[0]
    if said not in known:
        raise Invalid(f"{said[:40]!r} is none of {', '.join(known)}", pointer)
    return said


def _whole(said: int, least: int, most: int, pointer: str) -> int:
    if not least <= said <= most:
        raise Invalid(f"must be {least} to {most}, not {said}", pointer)
    return said


def _duration_ms(said: float | str, pointer: str, *, least_ms: int) -> int:
    most_ms = FLOW_PERIOD_S_MAX * 1000
    assert most_ms <= YEAR_MS
    return duration_ms(said, pointer, least_ms=least_ms, most_ms=most_ms)


# -- What is shown


def _shown_retries(retries: Retries) -> dict[str, Any]:
    backoff = retries.backoff
    return {
        "max_attempts": retries.max_attempts,
        "backoff": {
            "kind": backoff.kind,
            "base_seconds": backoff.base_ms / 1000,
            "cap_seconds": backoff.cap_ms / 1000,
        },
    }


def _shown_flow(flow: Flow) -> dict[str, Any]:
    parts = {name: getattr(flow, name) for name in flow.__struct_fields__}
    return {name: _shown_part(part) for name, part in parts.items() if part is not None}


def _shown_part(part: msgspec.Struct) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in part.__struct_fields__:
        value = getattr(part, name)
        if name.endswith("_ms"):
            found[name.removesuffix("_ms")] = duration_text(value) if value else None
        else:
            found[name] = None if name == "key" and not value else value
    return found


def _shown_batch(batch: Batch) -> dict[str, Any]:
    return {
        "max_batch_size": batch.max_batch_size,
        "max_batch_timeout": batch.max_batch_timeout_ms / 1000,
        "max_concurrency": batch.max_concurrency or None,
    }
