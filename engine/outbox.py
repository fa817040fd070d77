"""Sends what runs left for the outside world: every committed delivery, until it ends.

Path:   commit -> `notice` -> here -> connectors.* -> egress -> the provider
Never:  loses a delivery; sends one that is not committed; counts an attempt that was not made.

Before an attempt the row says `sending` (committed), after it attempt and new state are one commit.
So a delivery is made once, but for ONE window: the process dies after the provider took it and
before that commit. The next start, or another node, tries it again, and its log says so.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Final

import msgspec
import structlog

from engine.clock import Clock
from engine.connectors import CONNECTORS
from engine.connectors.contract import Answer, Connector, Refused, Retry, Sent
from engine.deliveries import State, decide
from engine.egress import Egress
from engine.errors import EngineError
from engine.lanes import HORIZON_MS, LaneLimits, Lanes
from engine.store import deliveries as store
from engine.store.database import Database
from engine.store.deliveries import Attempt, Change, Claimed, Key, Pending
from engine.store.journal import Commit, Journal, StoreFailed
from engine.store.tables import delivery_attempts
from engine.vault import Vault, connection_context

READ_IDS_MAX: Final = 500  # of one query
STORE_PAUSE_S: Final = 1.0  # after the database refused
TIMER_S_MAX: Final = 60.0  # a due time is never slept through for longer when the clock is set
CLOSE_GRACE_S: Final = 5.0  # for attempts on their way when the engine stops
INTERRUPTED: Final = "the engine stopped during this attempt; whether it arrived is not known"

_log = structlog.get_logger()


@dataclass(slots=True)
class OutboxCounts:
    """What happened since the start, for metrics."""

    requests: Counter[tuple[str, str]] = field(default_factory=Counter)  # (kind, outcome)
    delivered: int = 0
    retried: int = 0
    failed: int = 0
    recovered: int = 0  # left in `sending` by a crash


@dataclass(slots=True, kw_only=True)
class _Step:
    """What is to be written of one delivery."""

    change: Change
    key: Key | None  # None: it is not in the lanes (found at start)
    attempt: Attempt | None  # None: handed back unsent


class Outbox:
    """The one that sends. `start`, then `notice` after each commit, then `close`."""

    def __init__(
        self,
        database: Database,
        journal: Journal,
        vault: Vault,
        egress: Egress,
        *,
        clock: Clock,
        rng: Random,
        connectors: Mapping[str, Connector] = CONNECTORS,
        limits: LaneLimits | None = None,
        node: Callable[[], str | None] = lambda: None,
    ) -> None:
        """`node` says which deliveries are this outbox's; None: all there are."""
        self._node = node
        self._database = database
        self._journal = journal
        self._vault = vault
        self._egress = egress
        self._clock = clock
        self._rng = rng
        self._connectors = connectors
        self._limits = limits or LaneLimits()
        self._lanes = Lanes(self._limits)
        self.counts = OutboxCounts()
        self._noticed: list[str] = []
        self._steps: list[_Step] = []
        self._reading = self._writing = False
        self._interrupted = False  # deliveries that were on their way are to be taken up
        self._closing = False
        self._all_in = False  # the writer's: nothing more will come
        self._news = asyncio.Event()  # for the reader
        self._claims = asyncio.Event()  # for the claimer
        self._results = asyncio.Event()  # for the writer
        self._progress = asyncio.Event()  # for `drain` and `close`
        self._sends: set[asyncio.Task[None]] = set()
        self._takers: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._runner: asyncio.Task[None] | None = None
        self._group: asyncio.TaskGroup | None = None

    @property
    def waiting_count(self) -> int:
        """Deliveries that have not ended, for metrics; those on their way included."""
        return self._lanes.known_count + len(self._noticed)

    async def start(self) -> None:
        """Take up what a crash left behind and begin to send."""
        await self._take_up_interrupted()
        self._news.set()
        self._runner = asyncio.create_task(self._run(), name="outbox")

    def look(self) -> None:
        """Look into the table: after an outage it may have what this outbox was never told of."""
        self._lanes.swept(0)
        self.adopted((), interrupted=True)

    def adopted(self, waiting: Iterable[str], interrupted: bool) -> None:
        """Take over deliveries of a node that is gone: those that wait, and what it was sending."""
        self.notice(waiting)
        if interrupted:
            self._interrupted = True
            self._news.set()

    def notice(self, delivery_ids: Iterable[str]) -> None:
        """Send these, whose rows were just committed. Costs nothing more than a list."""
        self._noticed.extend(delivery_ids)
        self._news.set()

    async def drain(self) -> None:
        """Wait until everything that is due by the clock now has had its attempt, for tests."""
        self._pump()
        while not self._is_settled():
            assert self._runner is not None, "start it first"
            if self._runner.done():
                await self._runner
            self._progress.clear()
            await self._progress.wait()

    async def close(self) -> None:
        """Stop: attempts on their way may end, everything else stays in the table as it was."""
        if self._runner is None:
            return
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        for event in (self._news, self._claims, self._progress):
            event.set()
        if self._sends:
            _, late = await asyncio.wait(self._sends, timeout=CLOSE_GRACE_S)
            for send in late:
                send.cancel()
        await asyncio.wait({*self._takers, *self._sends})
        self._all_in = True
        self._results.set()
        await self._runner
        self._runner = None

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as self._group:
            self._takers = {
                self._group.create_task(self._read_forever()),
                self._group.create_task(self._claim_forever()),
            }
            self._group.create_task(self._write_forever())

    def _pump(self) -> None:
        """Start what may start now, and set the timer for the rest. Called after every change."""
        if self._closing or self._group is None:
            return
        now_ms = self._clock()
        self._lanes.wake(now_ms)
        while (claimed := self._lanes.next_to_send(now_ms)) is not None:
            send = self._group.create_task(self._send(claimed))
            self._sends.add(send)
            send.add_done_callback(self._sends.discard)
        self._claims.set()
        if self._lanes.sweep_due(now_ms) or self._lanes.lanes_to_refill():
            self._news.set()
        self._progress.set()
        self._set_timer(now_ms)

    def _set_timer(self, now_ms: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wake_ms = self._lanes.next_wake_ms(now_ms)
        if wake_ms is not None:
            delay_s = min(max(0, wake_ms - now_ms) / 1000, TIMER_S_MAX)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._pump)

    # Reader: ids that were noticed, and at start the table -> lanes.

    async def _read_forever(self) -> None:
        while await self._signal(self._news):
            self._reading = True
            try:
                await self._read_news()
            except StoreFailed as error:
                _log.error("outbox_cannot_read", error=str(error))
                await asyncio.sleep(STORE_PAUSE_S)
                self._lanes.swept(0)
            self._reading = False
            self._pump()

    async def _read_news(self) -> None:
        if self._interrupted:
            await self._take_up_interrupted()
            self._interrupted = False
        now_ms = self._clock()
        horizon_ms = now_ms + HORIZON_MS
        per_lane = self._limits.known_per_lane
        if self._lanes.sweep_due(now_ms):
            self._lanes.sweep_begins()
            rows, far_ms = await self._database.read(
                store.pending_until, horizon_ms, self._node(), per_lane=per_lane
            )
            self._lanes.swept(far_ms)
            counts = Counter(row.key for row in rows)
            for key, count in counts.items():
                if count == per_lane:
                    self._lanes.refilled(key, more=True)
            self._add(rows)
        for key in self._lanes.lanes_to_refill():
            rows = await self._database.read(
                store.pending_of, key, horizon_ms, self._node(), limit=per_lane
            )
            self._lanes.refilled(key, more=len(rows) == per_lane)
            self._add(rows)
        while self._noticed and not self._closing:
            ids = self._noticed[:READ_IDS_MAX]
            self._add(await self._database.read(store.pending_among, ids, self._node()))
            del self._noticed[: len(ids)]
            self._pump()

    def _add(self, rows: Iterable[Pending]) -> None:
        now_ms = self._clock()
        for pending in rows:
            self._lanes.add(pending, now_ms)

    # Claimer: lanes -> `sending` in the table -> lanes.

    async def _claim_forever(self) -> None:
        while await self._signal(self._claims):
            while not self._closing and (asked := self._lanes.to_claim(self._clock())):
                ids = [delivery_id for delivery_id, _ in asked]
                try:
                    got = await self._journal.run(store.claim, ids, self._node())
                except StoreFailed as error:
                    _log.error("outbox_cannot_claim", error=str(error))
                    await asyncio.sleep(STORE_PAUSE_S)
                    self._lanes.claim_failed(asked)
                else:
                    self._lanes.claimed(asked, got)
                self._pump()
        self._hand_back(self._lanes.hand_back_all())

    # One task per attempt.

    async def _send(self, claimed: Claimed) -> None:
        started_ms = self._clock()
        try:
            answer = await self._attempt(claimed, started_ms)
        except asyncio.CancelledError:  # only `close` cancels it, after its grace
            answer = Retry(None, None, INTERRUPTED)
        ended_ms = self._clock()
        number = claimed.attempts + 1
        verdict = decide(number, answer, ended_ms, self._rng)
        self._steps.append(
            _Step(
                change=Change(
                    id=claimed.id,
                    state=verdict.state,
                    attempts=number,
                    next_ms=verdict.next_ms,
                    ended_ms=verdict.ended_ms,
                ),
                key=claimed.key,
                attempt=Attempt(
                    attempt=number,
                    at_ms=started_ms,
                    took_ms=max(0, ended_ms - started_ms),
                    status=answer.status,
                    error=None if isinstance(answer, Sent) else answer.error,
                    delivered=isinstance(answer, Sent),
                ),
            )
        )
        self.counts.requests[claimed.kind, type(answer).__name__.lower()] += 1
        self._hand_back(self._lanes.answered(claimed.key, answer, ended_ms))
        self._pump()

    async def _attempt(self, claimed: Claimed, now_ms: int) -> Answer:
        project_id, name = claimed.key
        connection = claimed.connection
        connector = self._connectors.get(claimed.kind)
        if connection is None:
            return Refused(
                None,
                f"the connection {name!r} does not exist any more; "
                f"PUT /v1/connections/{name} and resend",
            )
        if connector is None or connection.kind != claimed.kind:
            return Refused(
                None,
                f"this is a delivery to {claimed.kind}, and {name!r} is now a connection to "
                f"{connection.kind}",
            )
        try:
            context = connection_context(project_id, name)
            opened = self._vault.open(connection.sealed, context=context)
            return await connector.send(
                self._egress,
                msgspec.json.decode(opened),
                msgspec.json.decode(connection.settings),
                msgspec.json.decode(claimed.payload),
                claimed.id,
                claimed.attempts + 1,
                now_ms=now_ms,
            )
        except EngineError as error:  # SealBroken: nothing that another attempt would heal
            return Refused(None, str(error))
        except Exception as error:  # noqa: BLE001 - a bug in one connector stops no other
            _log.exception("connector_failed", kind=claimed.kind, delivery_id=claimed.id)
            return Retry(None, None, f"the connector failed: {type(error).__name__}")

    def _hand_back(self, unsent: list[Claimed]) -> None:
        for claimed in unsent:
            change = Change(
                id=claimed.id,
                state=State.RETRYING if claimed.attempts else State.QUEUED,
                attempts=claimed.attempts,
                next_ms=claimed.due_ms,
                ended_ms=None,
            )
            self._steps.append(_Step(change=change, key=claimed.key, attempt=None))
        self._results.set()

    # Writer: what became of them -> the table.

    async def _write_forever(self) -> None:
        while not self._all_in:
            await self._results.wait()
            self._results.clear()
            await self._write_steps()

    async def _write_steps(self) -> None:
        while self._steps:
            steps, self._steps = self._steps, []
            self._writing = True
            try:
                await self._commit(steps)
            except StoreFailed as error:
                _log.error("outbox_cannot_write", error=str(error))
                self._steps = steps + self._steps
                if self._closing:
                    break  # they stay in `sending`, and the next start takes them up
                await asyncio.sleep(STORE_PAUSE_S)
                continue
            finally:
                self._writing = False
            for step in steps:
                self._written(step)
            self._pump()

    async def _commit(self, steps: list[_Step]) -> None:
        changes, node_id = [step.change for step in steps], self._node()
        commit = Commit(change=lambda connection: store.finish(connection, changes, node_id))
        for step in steps:
            if step.attempt is not None:
                commit.insert_new(
                    delivery_attempts, store.attempt_row(step.change.id, step.attempt)
                )
        await self._journal.commit(commit)

    def _written(self, step: _Step) -> None:
        change = step.change
        self._lanes.forget(change.id)
        if change.state in (State.RETRYING, State.QUEUED) and step.key is not None:
            pending = Pending(id=change.id, key=step.key, due_ms=change.next_ms)
            self._add([pending])
        if step.attempt is None:
            return
        self.counts.delivered += change.state is State.DELIVERED
        self.counts.retried += change.state is State.RETRYING
        self.counts.failed += change.state is State.FAILED

    async def _take_up_interrupted(self) -> None:
        left = await self._database.read(store.left_sending, self._node())
        now_ms = self._clock()
        steps = []
        known = self._lanes.known  # what this outbox is sending itself
        for row in left:
            if row.id in known:
                continue
            number = row.attempts + 1
            verdict = decide(number, Retry(None, None, INTERRUPTED), now_ms, self._rng)
            change = Change(
                id=row.id,
                state=verdict.state,
                attempts=number,
                next_ms=verdict.next_ms,
                ended_ms=verdict.ended_ms,
            )
            attempt = Attempt(
                attempt=number,
                at_ms=now_ms,
                took_ms=0,
                status=None,
                error=INTERRUPTED,
                delivered=False,
            )
            steps.append(_Step(change=change, key=None, attempt=attempt))
        if steps:
            await self._commit(steps)
            self.counts.recovered += len(steps)
            self.notice(step.change.id for step in steps)
            _log.info("outbox_recovered", deliveries=len(steps))

    # Waiting.

    async def _signal(self, event: asyncio.Event) -> bool:
        """Wait for `event`; return False when the outbox closes."""
        if not self._closing:
            await event.wait()
        event.clear()
        return not self._closing

    def _is_settled(self) -> bool:
        reading = self._reading or self._noticed or self._news.is_set()
        writing = self._writing or self._steps
        return not reading and not writing and self._lanes.is_settled(self._clock())
