"""Settles a run that has ended: its record and its effects in one transaction, then the follow-ups.

Path:   dispatch -> settle -> journal -> new runs to dispatch, deliveries to the outbox, the answer
Never:  lets an effect out of a run that did not succeed, or before its record is on disk.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec
import structlog

from engine.catalogue import Catalogue
from engine.events import Events
from engine.metrics import Metrics
from engine.run import CallEffect, KeyValueEffect, Run, WriteEffect
from engine.stacks import authors_stack
from engine.store.deliveries import delivery_row
from engine.store.journal import Commit, Journal
from engine.store.kv import put_row
from engine.store.tables import deliveries, executions, kv, run_queue
from engine.tails import Tails
from runtimes.contract import GuestError, Outcome

RETRY_S: Final = 1.0  # after a commit that the database refused
STORED_LOG_LEVEL: Final = "warn"
STORE_FAILED: Final = "StoreFailed"  # the error of a call whose effects the database did not take
_log = structlog.get_logger()
_encode: Final = msgspec.json.encode


class Settler:
    """Writes the record of every run."""

    def __init__(
        self,
        journal: Journal,
        events: Events,
        catalogue: Catalogue,
        tails: Tails,
        metrics: Metrics,
        *,
        start: Callable[[Iterable[Run]], None],
        start_again: Callable[[Run], None],
        notice: Callable[[Iterable[str]], None],
    ) -> None:
        self._journal = journal
        self._events = events
        self._catalogue = catalogue
        self._tails = tails
        self._metrics = metrics
        self._start = start
        self._start_again = start_again
        self._notice = notice

    def settle(self, run: Run) -> None:
        """Commit the run's record with its effects; `run.on_end` is called when that is done.

        A call without effects has nothing to wait for: its caller is answered at once, its record
        follows within milliseconds. A queued run has: until its row is gone it is not over.
        """
        _explain(run)
        ended = (run_queue, run.execution_id) if run.queued else None
        if run.queued and self._catalogue.function_by_id(run.version.function_id) is None:
            run.effects = []  # cancelled with its function: the record is there already
        if not run.effects or run.outcome is not Outcome.SUCCEEDED:
            self._journal.record(executions, _record(run, []), ended)
            self._ended(run, (), ())
            return
        commit = Commit()
        caused, delivery_ids, effects = self._effects(run, commit)
        commit.insert(executions, _record(run, effects))
        if ended is not None:
            commit.delete(*ended)

        def done(_result: Any, error: BaseException | None) -> None:
            if error is not None:
                self._refused(run, error)
            else:
                self._ended(run, caused, delivery_ids)

        commit.done = done
        self._journal.submit(commit)

    def _effects(
        self, run: Run, commit: Commit
    ) -> tuple[list[Run], list[str], list[dict[str, Any]]]:
        caused: list[Run] = []
        delivery_ids: list[str] = []
        shown: list[dict[str, Any]] = []
        now_ms = run.created_ms + (run.ended_ns - run.created_ns) // 1_000_000
        for effect in run.effects:
            if isinstance(effect, WriteEffect):
                accepted = self._events.accept(
                    commit, effect.device, effect.values, source="function", parent=run
                )
                caused += accepted.runs
                shown.append(
                    {
                        "kind": "write",
                        "device": effect.device.id,
                        "values": len(effect.values),
                        "event_id": accepted.event_id,
                    }
                )
            elif isinstance(effect, CallEffect):
                caused.append(_called(run, effect, commit, now_ms))
                called = {"function": effect.version.function, "execution_id": effect.execution_id}
                shown.append({"kind": "call", **called})
            elif isinstance(effect, KeyValueEffect):
                shown.append(_kept(run, effect, commit, now_ms))
            else:
                row = delivery_row(
                    delivery_id=effect.id,
                    project_id=run.project_id,
                    execution_id=run.execution_id,
                    position=len(delivery_ids),
                    connection=effect.connection,
                    kind=effect.kind,
                    payload=effect.payload,
                    now_ms=now_ms,
                )
                commit.insert(deliveries, row)
                delivery_ids.append(effect.id)
                shown.append({"kind": "delivery", "id": effect.id, "connection": effect.connection})
        return caused, delivery_ids, shown

    def _ended(self, run: Run, caused: Iterable[Run], delivery_ids: Iterable[str]) -> None:
        self._metrics.run_ended(run)
        self._tails.report(run)
        self._start(caused)
        if delivery_ids:
            self._notice(delivery_ids)
        if run.on_end is not None:
            run.on_end(run)

    def _refused(self, run: Run, error: BaseException) -> None:
        """The database did not take it: nothing of the run happened, so it may run again."""
        _log.error("run_not_recorded", execution_id=run.execution_id, error=str(error))
        if run.queued:
            run.start_again()
            run.outcome = None
            asyncio.get_running_loop().call_later(RETRY_S, self._start_again, run)
        elif run.on_end is not None:
            run.outcome, run.unstored = Outcome.FAILED, True
            run.error = GuestError(name="StoreFailed", message="the result could not be stored")
            run.on_end(run)


def _kept(run: Run, effect: KeyValueEffect, commit: Commit, now_ms: int) -> dict[str, Any]:
    """Put one change of the key-value store into the commit, and return what is shown of it."""
    key = (run.project_id, effect.namespace, effect.key)
    if effect.value is None:
        commit.remove(kv, key)
    else:
        commit.put(kv, put_row(*key, effect.value, effect.expires_ms, now_ms))
    operation = "delete" if effect.value is None else "put"
    return {
        "kind": "kv", "namespace": effect.namespace, "key": effect.key, "operation": operation,
    }  # fmt: skip


def _called(run: Run, effect: CallEffect, commit: Commit, now_ms: int) -> Run:
    """Put the run that `run` asked for into the queue, and return it."""
    version, depth = effect.version, run.depth + 1
    commit.insert(
        run_queue,
        (
            effect.execution_id, version.project_id, version.function_id, "call", effect.handler,
            None, None, effect.payload.decode(), run.root_id, depth, now_ms,
        ),
    )  # fmt: skip
    return Run(
        execution_id=effect.execution_id,
        version=version,
        handler=effect.handler,
        cause="call",
        limits=version.limits(effect.handler),
        input=effect.payload,
        created_ms=now_ms,
        created_ns=time.monotonic_ns(),
        root_id=run.root_id,
        depth=depth,
        queued=True,
    )


def _explain(run: Run) -> None:
    """Finish the log and turn the guest's error into the author's own file and line."""
    if run.log_dropped:
        limits = run.limits
        text = (
            f"log cut: {run.log_dropped} more lines; the limits are {limits.log_lines} lines "
            f"and {limits.log_bytes} bytes a run"
        )
        run.log.append((STORED_LOG_LEVEL, run.clock_ms, text))
    if run.error is not None and not run.error.file:
        run.error = authors_stack(run.error, run.version.program)


def _record(run: Run, effects: list[dict[str, Any]]) -> tuple[Any, ...]:
    assert run.outcome is not None
    version = run.version
    return (
        version.project_id,
        run.execution_id,
        version.function_id,
        version.function,
        version.number,
        run.cause,
        run.handler,
        run.event_id,
        None if run.device is None else run.device.id,
        run.outcome.value,
        run.created_ms,
        run.clock_ms,
        run.seed,
        run.attempt,
        run.queue_ns // 1000,
        run.wall_ns // 1000,
        run.cpu_ns // 1000,
        run.peak_bytes,
        None if run.event_id is not None else run.input.decode(),
        run.result.decode() if run.outcome is Outcome.SUCCEEDED else None,
        _report(run, effects),
        _encode(run.log).decode() if run.log else None,
    )


def _report(run: Run, effects: list[dict[str, Any]]) -> str:
    """Return what most runs need no column for, as JSON; by hand, as every run has one."""
    parts = [
        (
            f'{{"root_id":"{run.root_id}","depth":{run.depth},'
            f'"cold_start":{"true" if run.cold else "false"},"effects":'
            f"{_encode(effects).decode() if effects else '[]'}"
        )
    ]
    if run.error is not None:
        parts.append(f',"error":{_encode(run.error).decode()}')
    if run.limit is not None:
        parts.append(f',"limit":{_encode(run.limit).decode()}')
    if run.fuel:
        parts.append(f',"fuel":{run.fuel}')
    if run.transcript:
        parts.append(f',"transcript":[{b",".join(run.transcript).decode()}]')
    parts.append("}")
    return "".join(parts)
