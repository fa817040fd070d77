"""Gathers messages for the `queue` handler: up to a number, or until the first has waited enough.

Path:   backlog (claimed) -> `Batches.add` -> dispatch, as one run -> commit -> `verdicts`
Never:  loses a message: what waits here is this node's in the store, and free when the node is not.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec

from engine.catalogue import Version
from engine.causality import together
from engine.clock import Clock, iso
from engine.ids import new_id
from engine.intents import origin_together
from engine.policies import Batch
from engine.quotas import BACKOFF_S_MAX, PARAMS_BYTES_MAX
from engine.run import Run
from runtimes.contract import Outcome

BATCH_BYTES_MAX: Final = PARAMS_BYTES_MAX  # of bodies, unless one message alone has more
DELAY_MS_MAX: Final = BACKOFF_S_MAX * 1000
_DEFAULTS: Final = Batch()
_encode: Final = msgspec.json.encode
_Key = tuple[Version, str]


class Timer(Protocol):
    """Port: what can still be called off. Adapter: `asyncio.TimerHandle`."""

    def cancel(self) -> None: ...


Later = Callable[[float, Callable[[], None]], Timer]
"""Calls something after so many seconds, as `loop.call_later` does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryAsked:
    """The handler wants a message again; `delay_ms` None: when its policy says."""

    delay_ms: int | None = None


@dataclass(slots=True)
class _Gathering:
    """Messages of one version and one queue."""

    messages: list[Run] = field(default_factory=list)
    timer: Timer | None = None
    is_due: bool = False  # the first has waited enough


class Batches:
    """All messages of this node that wait for others to come with them."""

    def __init__(
        self, dispatch: Callable[[Run], None], clock: Clock, call_later: Later | None = None
    ) -> None:
        """`dispatch` takes a batch as a run, whose `on_end` is told when it has been settled."""
        self._dispatch = dispatch
        self._clock = clock
        self._call_later = call_later or asyncio.get_running_loop().call_later
        self._gathering: dict[_Key, _Gathering] = {}
        self._key_of: dict[str, _Key] = {}  # of what waits, by its execution's id
        self._at_work: dict[str, Run] = {}  # batches, by their executions' ids

    def add(self, message: Run) -> None:
        """Take a message; it goes with the next batch of its version and queue."""
        if message.cause == "replay":  # of a whole batch, or of one that was asked for by itself
            self._dispatch(message)
            return
        key = (message.version, message.policy.queue)
        settings, gathering = _settings(key), self._gathering.setdefault(key, _Gathering())
        gathering.messages.append(message)
        self._key_of[message.execution_id] = key
        if gathering.timer is None and not gathering.is_due:
            self._wait(key, gathering)
        if len(gathering.messages) >= settings.max_batch_size:
            self._send(key)

    def running(self) -> list[str]:
        """Return the ids of messages whose batch is in a cell now."""
        begun = [batch for batch in self._at_work.values() if batch.started_ns]
        return [message.execution_id for batch in begun for message in batch.messages]

    def at_work(self) -> list[Run]:
        """Return the batches that were sent and have not ended."""
        return list(self._at_work.values())

    def has(self, run_id: str) -> bool:
        """Say whether a message waits here for others."""
        return run_id in self._key_of

    def discard(self, run_id: str) -> bool:
        """Forget a message that waits here; return whether it did."""
        key = self._key_of.pop(run_id, None)
        if key is None:
            return False
        gathering = self._gathering[key]
        gathering.messages = [one for one in gathering.messages if one.execution_id != run_id]
        if not gathering.messages:
            self._drop(key)
        return True

    def _wait(self, key: _Key, gathering: _Gathering) -> None:
        def due() -> None:
            gathering.timer, gathering.is_due = None, True
            self._send(key)

        gathering.timer = self._call_later(_settings(key).max_batch_timeout_ms / 1000, due)

    def _send(self, key: _Key) -> None:
        """Send what is full, or due, as far as batches may be at work."""
        settings = _settings(key)
        while (gathering := self._gathering.get(key)) is not None:
            if len(gathering.messages) < settings.max_batch_size and not gathering.is_due:
                return
            if 0 < settings.max_concurrency <= self._count(key[0].id):
                return  # the end of one looks here again
            count = _fitting(gathering.messages, settings.max_batch_size)
            sent, rest = gathering.messages[:count], gathering.messages[count:]
            self._drop(key)
            if rest:
                self._gathering[key] = _Gathering(messages=rest)
                self._key_of.update((one.execution_id, key) for one in rest)
                self._wait(key, self._gathering[key])
            batch = _batch_of(sent, self._clock())
            batch.on_end = self._ended
            self._at_work[batch.execution_id] = batch
            self._dispatch(batch)

    def _count(self, version_id: str) -> int:
        return sum(batch.version.id == version_id for batch in self._at_work.values())

    def _drop(self, key: _Key) -> None:
        gathering = self._gathering.pop(key)
        if gathering.timer is not None:
            gathering.timer.cancel()
        for message in gathering.messages:
            self._key_of.pop(message.execution_id, None)

    def _ended(self, batch: Run) -> None:
        self._at_work.pop(batch.execution_id, None)
        for key in [key for key in self._gathering if key[0].id == batch.version.id]:
            self._send(key)


def verdicts(run: Run) -> dict[str, RetryAsked | None]:
    """Return what the handler wants with each message, by its execution's id; None: it is done.

    The result is a guest's: `{"retry": [{"id", "delaySeconds"}]}`, with `delay_seconds` as well.
    Whatever else it holds means nothing. Of a batch that did not succeed every message comes again.
    """
    if run.outcome is not Outcome.SUCCEEDED:
        return {message.execution_id: RetryAsked() for message in run.messages}
    asked: dict[str, RetryAsked] = {}
    for item in _retries(run.result):
        if isinstance(item, dict) and isinstance(item.get("id"), str):
            delay = item.get("delaySeconds", item.get("delay_seconds"))
            asked[item["id"]] = RetryAsked(delay_ms=_delay_ms(delay))
    return {message.execution_id: asked.get(message_id(message)) for message in run.messages}


def as_batch(run: Run) -> bytes:
    """Return the input of a run of the `queue` handler that is no message: a call, or a replay.

    What it was called with is the body of its one message; a replayed batch has its form already.
    """
    try:
        given = msgspec.json.decode(run.input)
    except (msgspec.MsgspecError, RecursionError):
        given = None
    if isinstance(given, dict) and {"queue", "messages"} == given.keys():
        messages = given["messages"]
        if isinstance(messages, list) and all(isinstance(one, dict) for one in messages):
            return run.input
    return _input_of([run])


def message_id(message: Run) -> str:
    """Return what the handler knows a message by: the same at each attempt, if it is a job's."""
    return message.job_id or message.execution_id


def _retries(result: bytes) -> list[Any]:
    try:
        found = msgspec.json.decode(result)
    except (msgspec.MsgspecError, RecursionError):
        return []
    asked = found.get("retry") if isinstance(found, dict) else None
    return asked if isinstance(asked, list) else []


def _delay_ms(seconds: object) -> int | None:
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        return None
    if not seconds >= 0:  # NaN is not, either
        return None
    return int(min(seconds, DELAY_MS_MAX / 1000) * 1000)


def _settings(key: _Key) -> Batch:
    return key[0].policy.batch or _DEFAULTS


def _fitting(messages: list[Run], most: int) -> int:
    """Return how many of the first messages go into one input."""
    size = 0
    for count, message in enumerate(messages[:most]):
        size += len(message.input)
        if count and size > BATCH_BYTES_MAX:
            return count
    return min(most, len(messages))


def _batch_of(messages: list[Run], now_ms: int) -> Run:
    """Return the run that has these messages as its input."""
    first, execution_id = messages[0], new_id("exe")
    roots = {message.root_id for message in messages}
    return Run(
        execution_id=execution_id,
        version=first.version,
        handler="queue",
        cause=first.cause,
        limits=first.version.limits("queue"),
        input=_input_of(messages),
        created_ms=now_ms,
        created_ns=min(message.created_ns for message in messages),
        root_id=roots.pop() if len(roots) == 1 else execution_id,
        origin=origin_together(messages),
        depth=max(message.depth for message in messages),
        path=max(messages, key=lambda message: message.depth).path,
        budget=together(message.budget for message in messages),
        attempt=max(message.attempt for message in messages),
        queued=True,  # its messages are: nobody waits for it, so it can wait, and be given back
        messages=tuple(messages),
    )


def _input_of(messages: list[Run]) -> bytes:
    parts = b",".join(map(_part, messages))
    return b'{"queue":%b,"messages":[%b]}' % (_encode(messages[0].policy.queue), parts)


def _part(message: Run) -> bytes:
    return b'{"id":"%b","timestamp":"%b","body":%b,"attempts":%d}' % (
        message_id(message).encode(),
        iso(message.created_ms).encode(),
        message.input,
        message.attempt,
    )
