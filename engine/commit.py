"""Settles a run that has ended: its record and its effects in one transaction, then the follow-ups.

Path:   dispatch -> settle -> journal -> new runs to dispatch, deliveries to the outbox, the answer
Never:  lets an effect out of a run that did not succeed, or before its record is on disk.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from random import Random
from typing import Any, Final

import msgspec
import structlog
from msgspec.structs import replace
from sqlalchemy import Connection

from engine.batches import verdicts
from engine.catalogue import Catalogue
from engine.causality import Share, path_below, share_of
from engine.clock import Clock
from engine.ends import attempt, give_up, tell_end
from engine.enqueue import Owner, as_declared, enqueue, row_of
from engine.events import Accepted, Events, Match
from engine.ids import new_id
from engine.intents import origin_below, origin_of
from engine.jobs import Status
from engine.metrics import Metrics
from engine.policies import LANES, PLAIN, write_queued
from engine.retries import OVER, Again, Over, decide
from engine.run import CallEffect, DeliveryEffect, KeyValueEffect, Run, WriteEffect
from engine.stacks import authors_stack
from engine.store import schedules
from engine.store.breakers import put_off_runs
from engine.store.database import is_unfit
from engine.store.deliveries import delivery_row
from engine.store.flow import hold_back, unpark
from engine.store.journal import Commit, Journal, LeaseLost
from engine.store.kv import put_row
from engine.store.nodes import free_runs
from engine.store.run_queue import insert_rows
from engine.store.tables import dead_letters, deliveries, executions, jobs, kv, run_queue
from engine.tails import Tails
from engine.vault import Vault, delivery_context
from runtimes.contract import GuestError, Outcome

RETRY_S: Final = 1.0  # after a commit that the database refused
STORED_LOG_LEVEL: Final = "warn"
JOB_COLUMNS: Final = ("status", "attempts", "execution_id", "result", "error", "ended_ms")
STORE_FAILED: Final = "StoreFailed"  # the error of a call whose effects the database did not take
_log = structlog.get_logger()
_encode: Final = msgspec.json.encode


@dataclass(slots=True)
class _Happened:
    """What a commit will have caused when it is on disk."""

    caused: list[Run] = field(default_factory=list)
    deliveries: list[str] = field(default_factory=list)
    woken: list[tuple[str, int, int]] = field(default_factory=list)  # project, priority, due
    retries: int = 0
    dead: int = 0


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
        wake: Callable[[str, int, int], None],
        owner: Owner,
        vault: Vault,
        clock: Clock,
        rng: Random,
        outbox_of: Callable[[], str | None],
    ) -> None:
        """`start` takes runs that a run has caused, `notice` its deliveries, once committed.

        `start_again` runs a run once more whose record the database refused; `wake` is told
        (project, priority, due) of free rows; `outbox_of` says whose outbox has the deliveries of
        this node's runs; `rng` spreads retries.
        """
        journal.gather(LANES, self._unpark, self._unparked)
        self._wake = wake
        self._owner = owner
        self._vault = vault
        self._clock = clock
        self._rng = rng
        self._outbox_of = outbox_of
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
        if attempt("run_not_settled", run.execution_id, self._settle, run):
            return
        give_up(run)
        run.unstored = not run.queued and not run.messages
        # A row must go, or come back later: as its policy says. If it cannot, it stays this
        # node's until the audit gives it back.
        if run.unstored or not attempt("run_given_up", run.execution_id, self._settle, run):
            tell_end(run)

    def _settle(self, run: Run) -> None:
        _explain(run)
        if run.messages:
            self._settle_messages(run)
        elif run.queued:
            self._settle_queued(run)
        elif not run.effects or run.outcome is not Outcome.SUCCEEDED:
            self._journal.record(executions, _record(run, []))
            self._ended(run, (), ())
        else:
            commit = Commit()
            happened = self._happened(run, commit)
            if run.on_commit is not None:
                run.on_commit(run, commit)
            self._submit(run, commit, happened)

    def _settle_queued(self, run: Run) -> None:
        assert run.outcome is not None
        if run.owner is None or run.owner != self._journal.node_id:
            self._lost(run)
            return
        is_plain = run.policy is PLAIN and run.job_id is None and run.lane is None
        if is_plain and not run.set_aside_by:
            # The usual run of a device's write: it is tried once, and nothing waits for its end.
            follows: Again | Over = OVER
            if not run.effects or run.outcome is not Outcome.SUCCEEDED:
                self._journal.record(executions, _record(run, []), claim=run.execution_id)
                self._ended(run, (), ())
                return
        else:
            follows = decide(run.outcome, run.attempt, run.policy, self._clock(), self._rng)
            if run.set_aside_by and follows == OVER and run.outcome not in _AS_ASKED:
                follows = Over(dead=True)
        commit = Commit(claims=[run.execution_id])
        happened = self._happened(run, commit)
        self._follow(run, follows, commit, happened)
        if run.lane is not None:
            commit.gather(LANES, run.lane)
            if run.policy.order and isinstance(follows, Again):
                commit.change = partial(hold_back, lane=run.lane, node_id=run.owner)
        over = not isinstance(follows, Again)
        if run.policy.watched and over and run.outcome not in (Outcome.SKIPPED, Outcome.CANCELLED):
            self._tell_schedule(run, commit)  # what did not run has not failed
        self._submit(run, commit, happened)

    def put_off(self, run: Run, due_ms: int) -> None:
        """Give a queued run that has not begun back, to be claimed when it is due.

        Until that is on disk its row is this node's, so nobody runs it meanwhile.
        """
        rows = run.messages or (run,)
        ids = [row.execution_id for row in rows]
        lane = run.lane if run.policy.order else None
        change = partial(
            put_off_runs, node_id=self._journal.node_id or "", ids=ids, due_ms=due_ms, lane=lane
        )

        def done(_result: Any, error: BaseException | None) -> None:
            if error is not None:
                _log.warning("runs_not_put_off", count=len(ids), error=str(error))
            self._wake(run.project_id, run.priority, due_ms)
            for row in rows:
                row.stays = True
            run.retried = lane is not None  # it keeps its place: see `Backlog`
            tell_end(run)

        commit = Commit(change=change, done=done)
        if lane is not None:
            commit.gather(LANES, lane)
        self._journal.submit(commit)

    def _settle_messages(self, batch: Run) -> None:
        """Settle a batch of the `queue` handler: one record, and what becomes of each message."""
        assert batch.outcome is not None
        if any(message.owner != self._journal.node_id for message in batch.messages):
            self._lost(batch)
            return
        commit = Commit(claims=[message.execution_id for message in batch.messages])
        happened = self._happened(batch, commit)
        asked = verdicts(batch)
        for message in batch.messages:
            message.outcome, message.error = batch.outcome, batch.error
            retry = asked.get(message.execution_id)
            if batch.outcome is Outcome.SUCCEEDED and retry is not None:
                message.outcome = Outcome.FAILED
                message.error = GuestError(name="Retry", message="the handler asked for a retry")
            follows = decide(
                message.outcome, message.attempt, message.policy, self._clock(), self._rng
            )
            if isinstance(follows, Again) and retry is not None and retry.delay_ms is not None:
                follows = Again(self._clock() + retry.delay_ms)
            self._follow(message, follows, commit, happened, record_id=batch.execution_id)
            if message.lane is not None:
                commit.gather(LANES, message.lane)
        self._submit(batch, commit, happened)

    def _happened(self, run: Run, commit: Commit) -> "_Happened":
        """Put the run's record and, if it went well, its effects into the commit."""
        happened = _Happened()
        effects = []
        if run.outcome is Outcome.SUCCEEDED and run.effects:
            effects = self._effects(run, commit, happened)
        commit.insert(executions, _record(run, effects))
        return happened

    def _follow(
        self,
        run: Run,
        follows: Again | Over,
        commit: Commit,
        happened: "_Happened",
        record_id: str | None = None,
    ) -> None:
        """Put into the commit what becomes of the run now that this attempt is over."""
        assert run.outcome is not None
        error = None if run.error is None else _error_json(run)
        if isinstance(follows, Again):
            run.retried = True
            happened.retries += 1
            row = row_of(
                replace(run, attempt=run.attempt + 1, due_ms=follows.due_ms, owner=None),
                new_id("exe"),
            )
            commit.insert(run_queue, row)
            happened.woken.append((run.project_id, run.priority, follows.due_ms))
        elif follows.dead:
            happened.dead += 1
            commit.insert(dead_letters, _dead_letter(run, error, self._clock()))
        if run.job_id is None:
            return
        result = run.result.decode() if run.outcome is Outcome.SUCCEEDED else None
        values = (
            _job_status(run.outcome, follows),
            run.attempt,
            record_id or run.execution_id,
            None if run.handler == "queue" else result,
            error,
            None if isinstance(follows, Again) else self._clock(),
        )
        commit.update(jobs, JOB_COLUMNS, run.job_id, values)

    def _tell_schedule(self, run: Run, commit: Commit) -> None:
        succeeded = run.outcome is Outcome.SUCCEEDED
        error = None if run.error is None else _error_json(run)
        assert run.schedule_id is not None
        commit.change = partial(
            _schedule_told,
            schedule_id=run.schedule_id,
            succeeded=succeeded,
            execution_id=run.execution_id,
            error=error,
            now_ms=self._clock(),
        )

    def _submit(self, run: Run, commit: Commit, happened: "_Happened") -> None:
        def done(result: Any, error: BaseException | None) -> None:
            if isinstance(error, LeaseLost):
                self._lost(run)
            elif error is not None:
                self._refused(run, error)
            else:
                self._metrics.counts["retries"] += happened.retries
                self._metrics.counts["dead_letters"] += happened.dead
                happened.woken += result if run.policy.watched and result else ()
                self._ended(run, happened.caused, happened.deliveries, happened.woken)

        commit.done = done
        self._journal.submit(commit)

    def _effects(self, run: Run, commit: Commit, happened: "_Happened") -> list[dict[str, Any]]:
        caused, delivery_ids = happened.caused, happened.deliveries
        shown: list[dict[str, Any]] = []
        now_ms = self._clock()
        numbers = count()  # of what causes runs: the others shift no origin
        matched, share = self._share(run)
        for effect in run.effects:
            if isinstance(effect, WriteEffect):
                accepted = self._events.accept(
                    commit,
                    effect.device,
                    effect.values,
                    source="function",
                    matched=next(matched),
                    share=share,
                    root_id=run.root_id,
                    origin=origin_below(origin_of(run), next(numbers)),
                )
                caused += accepted.runs
                shown.append(self._written(run, effect, accepted))
            elif isinstance(effect, CallEffect):
                called_run = _called(run, effect, next(numbers), now_ms, share)
                as_declared(called_run)
                enqueue(commit, called_run, self._owner)
                caused.append(called_run)
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
                    function=run.version.function,
                    connection=effect.connection,
                    kind=effect.kind,
                    action=effect.action,
                    recipient=effect.recipient,
                    line=effect.line,
                    payload=effect.payload,
                    sealed=self._sealed(effect, run),
                    via=effect.via,
                    now_ms=now_ms,
                    node_id=self._outbox_of(),
                )
                commit.insert_new(deliveries, row)  # not new: the same intent, made once more
                delivery_ids.append(effect.id)
                shown.append({"kind": "delivery", "id": effect.id, "connection": effect.connection})
        return shown

    def _share(self, run: Run) -> tuple[Iterator[list[Match]], Share]:
        """Return what each write of the run triggers, and what all that it causes may cause."""
        matched = [
            self._events.matching(effect.device, effect.values)
            for effect in run.effects
            if isinstance(effect, WriteEffect)
        ]
        share = share_of(
            run.budget,
            depth=run.depth + 1,
            path=path_below(run.path, run.version.function),
            called=run.budget - run.free_budget,
            triggered=sum(map(len, matched)),
        )
        return iter(matched), share

    def _written(self, run: Run, effect: WriteEffect, accepted: Accepted) -> dict[str, Any]:
        """Return what is shown of a write; what it was not to trigger any more, nobody overlooks.

        The run has ended, so its log takes one more line than its author may write.
        """
        shown = {
            "kind": "write",
            "device": effect.device.id,
            "values": len(effect.values),
            "event_id": accepted.event_id,
        }
        if accepted.stopped:
            run.log.append(("warn", run.clock_ms, accepted.stopped))
            self._metrics.counts["loops_stopped"] += accepted.stopped_count
            shown["stopped"] = accepted.stopped
        return shown

    def _sealed(self, effect: DeliveryEffect, run: Run) -> bytes | None:
        """Return a script's own credentials: with the key of now, not that of minutes ago.

        A change of the master key relies on it: what it has not seen in the table may not come.
        """
        if effect.sealed is None:
            return None
        context = delivery_context(run.project_id, effect.id)
        return self._vault.renewed(effect.sealed, context=context) or effect.sealed

    def _ended(
        self,
        run: Run,
        caused: Iterable[Run],
        delivery_ids: Iterable[str],
        woken: Iterable[tuple[str, int, int]] = (),
    ) -> None:
        # What it caused is on disk, where it is found without a word of ours.
        about = run.execution_id
        attempt("end_not_followed", about, self._pass_on, run, caused, delivery_ids, woken)
        tell_end(run)

    def _pass_on(
        self,
        run: Run,
        caused: Iterable[Run],
        delivery_ids: Iterable[str],
        woken: Iterable[tuple[str, int, int]],
    ) -> None:
        self._metrics.run_ended(run)
        self._tails.report(run)
        self._start(caused)
        if delivery_ids:
            self._notice(delivery_ids)
        for project_id, priority, due_ms in woken:
            self._wake(project_id, priority, due_ms)

    def _unpark(self, connection: Connection, lanes: list[str]) -> list[tuple[str, int]]:
        return unpark(connection, sorted(set(lanes)), self._clock())

    def _unparked(self, freed: Iterable[tuple[str, int]]) -> None:
        for project_id, priority in freed:
            self._wake(project_id, priority, 0)

    def _lost(self, run: Run) -> None:
        """Somebody else has the run, or it was cancelled: nothing of what it did here counts."""
        if not any(row.stays for row in run.messages or (run,)):  # else we have given it back
            _log.info("run_not_ours", execution_id=run.execution_id)
        run.retried = False
        node_id = self._journal.node_id
        ours = [message for message in run.messages if message.owner == node_id]
        if ours and node_id is not None:
            # One message of the batch is gone: the others are still here, and run again.
            ids = [message.execution_id for message in ours]
            free = partial(free_runs, node_id=node_id, ids=ids)
            woken = (run.project_id, run.priority, 0)
            self._journal.submit(Commit(change=free, done=lambda *_: self._wake(*woken)))
        tell_end(run)

    def _fail(self, run: Run, cause: BaseException) -> None:
        """End an attempt without the effects that the database never takes, as its policy says."""
        why = type(getattr(cause, "orig", None) or cause).__name__
        message = f"the result could not be stored: {why}"
        run.outcome = Outcome.FAILED
        run.error = GuestError(name=STORE_FAILED, message=message)
        run.result, run.log_dropped = b"null", 0  # its log tells of those already
        for one in (run, *run.messages):
            one.retried = False
        self.settle(run)

    def _refused(self, run: Run, error: BaseException) -> None:
        """The database did not take it: nothing of the run happened, so it may run again."""
        _log.error("run_not_recorded", execution_id=run.execution_id, error=str(error))
        cause = error.__cause__ or error
        if run.queued and run.outcome is Outcome.SUCCEEDED and is_unfit(cause):
            self._fail(run, cause)
        elif run.queued and run.outcome is not None and (not run.started_ns or is_unfit(cause)):
            # It was not to run at all, only to end: skipped, or given up. Or it has failed.
            run.retried, run.log_dropped = False, 0  # its log tells of those already
            asyncio.get_running_loop().call_later(RETRY_S, self.settle, run)
        elif run.queued:
            run.start_again()
            run.retried = False
            run.outcome = None
            asyncio.get_running_loop().call_later(RETRY_S, self._start_again, run)
        else:
            run.outcome, run.unstored = Outcome.FAILED, True
            run.error = GuestError(name=STORE_FAILED, message="the result could not be stored")
            tell_end(run)


def _schedule_told(
    connection: Connection,
    *,
    schedule_id: str,
    succeeded: bool,
    execution_id: str,
    error: str | None,
    now_ms: int,
) -> list[tuple[str, int, int]]:
    """Let the schedule count how its run ended; return what that makes due, as `wake` wants it."""
    rows = schedules.run_ended(connection, schedule_id, succeeded, execution_id, error, now_ms)
    return insert_rows(connection, rows)


def _dead_letter(run: Run, error: str | None, now_ms: int) -> tuple[Any, ...]:
    assert run.outcome is not None
    return (
        new_id("dlq"),
        run.project_id,
        run.version.function_id,
        run.version.function,
        run.handler,
        run.cause,
        run.execution_id,
        run.job_id,
        run.event_id,
        None if run.device is None else run.device.id,
        run.schedule_id,
        None if run.event_id is not None else run.input.decode(),
        write_queued(run.policy),
        run.policy.queue,
        run.outcome.value,
        error,
        run.attempt,
        now_ms,
        origin_of(run),
        run.set_aside_by or None,
    )


def _job_status(outcome: Outcome, follows: Again | Over) -> str:
    if isinstance(follows, Again):
        return Status.QUEUED.value
    if follows.dead:
        return Status.DEAD_LETTERED.value
    return _JOB_STATUS.get(outcome, Status.FAILED).value


_AS_ASKED: Final = frozenset({Outcome.SUCCEEDED, Outcome.REJECTED, Outcome.CANCELLED})
_JOB_STATUS: Final = {
    Outcome.SUCCEEDED: Status.SUCCEEDED,
    Outcome.CANCELLED: Status.CANCELLED,
    Outcome.SKIPPED: Status.SKIPPED,
}


def _error_json(run: Run) -> str:
    error = msgspec.to_builtins(run.error)
    if run.skip_reason:
        error["reason"] = run.skip_reason
    return _encode(error).decode()


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


def _called(run: Run, effect: CallEffect, number: int, now_ms: int, share: Share) -> Run:
    """Return the run that `run` asked for by its write or call of this number."""
    version = effect.version
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
        depth=share.depth,
        path=share.path,
        budget=share.each,
        origin=origin_below(origin_of(run), number),
    )


def _explain(run: Run) -> None:
    """Finish the log, hide secrets, and turn the guest's error into the author's file and line."""
    if run.log_dropped:
        limits = run.limits
        text = (
            f"log cut: {run.log_dropped} more lines; the limits are {limits.log_lines} lines "
            f"and {limits.log_bytes} bytes a run"
        )
        run.log.append((STORED_LOG_LEVEL, run.clock_ms, text))
    redaction = run.version.redaction
    if redaction is not None:
        hide = redaction.response if run.handler == "fetch" else redaction.json
        run.result = hide(run.result)
        run.transcript = [redaction.json(call) for call in run.transcript]
        if run.error is not None:
            run.error = redaction.error(run.error)
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
        run.job_id,
        run.schedule_id,
    )


def _report(run: Run, effects: list[dict[str, Any]]) -> str:
    """Return what most runs need no column for, as JSON; by hand, as every run has one."""
    shown = _encode(effects) if effects else b"[]"
    if run.version.redaction is not None:
        shown = run.version.redaction.json(shown)
    parts = [
        (
            f'{{"root_id":"{run.root_id}","depth":{run.depth},'
            f'"cold_start":{"true" if run.cold else "false"},"effects":'
            f"{shown.decode()}"
        )
    ]
    if run.error is not None:
        parts.append(f',"error":{_error_json(run)}')
    if run.limit is not None:
        parts.append(f',"limit":{_encode(run.limit).decode()}')
    if run.origin:
        parts.append(f',"origin":"{run.origin}"')
    if run.losses:
        parts.append(f',"restarts":{run.losses}')
    if run.fuel:
        parts.append(f',"fuel":{run.fuel}')
    if run.transcript:
        parts.append(f',"transcript":[{b",".join(run.transcript).decode()}]')
    parts.append("}")
    return "".join(parts)
