"""Sends what runs left for the outside world: every committed delivery, until it ends.

Path:   commit -> `notice` -> here -> connectors.* -> egress -> the provider
Never:  loses a delivery; sends one that is not committed; counts an attempt that was not made.

Before an attempt the row says `sending` (committed), after it attempt and new state are one commit.
So a delivery is made once, but for ONE window: the process dies after the provider took it and
before that commit. The next start, or another node, tries it again, and its log says so.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from traceback import format_exception
from typing import Any, Final

import msgspec
import structlog

from engine.callbacks import callback_url
from engine.clock import Clock
from engine.connectors import CONNECTORS
from engine.connectors.contract import (
    ERROR_CHARS_MAX,
    SEND_MS_MAX,
    Answer,
    Connector,
    Habits,
    Outgoing,
    Refused,
    Retry,
    Sent,
)
from engine.deliveries import Sending, State, Verdict, decide, sending_of
from engine.egress import Egress
from engine.errors import EngineError
from engine.gates import Breaker, News, Word
from engine.lanes import BEHIND_MAX, HEAD_LOOK_MS, HORIZON_MS, LaneLimits, Lanes
from engine.scrub import printable, scrubbed
from engine.store import deliveries as store
from engine.store import gates
from engine.store.database import Database
from engine.store.deliveries import Attempt, Change, Claimed, Left, Pending
from engine.store.gates import Key, Noted
from engine.store.journal import Commit, Journal, StoreFailed
from engine.store.tables import delivery_attempts
from engine.store.turns import Turns, claim
from engine.vault import Vault, connection_context, delivery_context

READ_IDS_MAX: Final = 500  # of one query
LINE_MAX: Final = BEHIND_MAX + 1  # of those to one recipient
STORE_PAUSE_S: Final = 1.0  # after the database refused
TIMER_S_MAX: Final = 60.0  # a due time is never slept through for longer when the clock is set
ATTEMPT_S_MAX: Final = SEND_MS_MAX / 1000 + 5  # a connector that forgets its own limit
MESSAGE_ID_CHARS_MAX: Final = 200
POLICIES_MAX: Final = 1_000  # in memory, by kind and settings
TROUBLED_MAX: Final = 1_000
_TOO_MANY: Final = 429
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
    held: Counter[str] = field(default_factory=Counter)  # by why: guard | disabled
    opened: Counter[str] = field(default_factory=Counter)  # breakers, by kind


@dataclass(slots=True, kw_only=True)
class _Step:
    """What is to be written of one delivery."""

    change: Change
    claimed: Claimed | None  # None: it is not in the lanes (found at start)
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
        public_url: str = "",
        claim_s: float = math.inf,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take what it works with.

        Args:
            database: where deliveries are.
            journal: through which they change.
            vault: opens credentials.
            egress: the way to providers.
            clock: the wall's.
            rng: spreads retries.
            connectors: by kind.
            limits: how much goes at once.
            node: says which deliveries are this outbox's; None: all there are.
            public_url: where providers reach the engine, to say what became of a message.
            claim_s: what was claimed longer ago is not sent before it is claimed again: this
                process may have been paused, and another node may have it.
            monotonic: seconds by a clock that is never set.
        """
        self._claim_s = claim_s
        self._monotonic = monotonic
        self._public_url = public_url
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
        self._told: dict[Key, list[News]] = {}  # for gates
        self._troubled: dict[Key, str] = {}  # connections whose gates have failures, and kinds
        self._policies: dict[tuple[str, str], Sending] = {}
        self._heads_ms = 0  # when to look whether another node has changed who is waited for
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

    def lost(self) -> None:
        """Let go of what is not on its way: this node was taken over."""
        self._hand_back(self._lanes.lost())

    def notice(self, delivery_ids: Iterable[str]) -> None:
        """Look at these, whose rows were just committed. Costs nothing more than a list.

        They are new, or somebody has changed them: sends what waits, and what waited behind others.
        """
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
        if stale := self._lanes.claimed_before(self._monotonic() - self._claim_s):
            self._hand_back(stale)
        while (claimed := self._lanes.next_to_send(now_ms)) is not None:
            send = self._group.create_task(self._send(claimed))
            self._sends.add(send)
            send.add_done_callback(self._sends.discard)
        self._claims.set()
        lanes = self._lanes
        reads = lanes.sweep_due(now_ms) or lanes.lanes_to_refill() or lanes.lines_to_read()
        if reads or self._heads_due(now_ms):
            self._news.set()
        self._progress.set()
        self._set_timer(now_ms)

    def _set_timer(self, now_ms: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wake_ms = self._lanes.next_wake_ms(now_ms)
        if wake_ms is not None:
            shared = self._node() is not None and self._lanes.known_count
            most_s = HEAD_LOOK_MS / 1000 if shared else TIMER_S_MAX
            delay_s = min(max(0, wake_ms - now_ms) / 1000, most_s)
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
            self._add(rows, more=True)
        for key in self._lanes.lanes_to_refill():
            rows = await self._database.read(
                store.pending_of, key, horizon_ms, self._node(), limit=per_lane
            )
            self._lanes.refilled(key, more=len(rows) == per_lane)
            self._add(rows, more=True)
        if self._heads_due(now_ms):
            self._heads_ms = now_ms + HEAD_LOOK_MS
            await self._look_at_heads()
        while self._noticed and not self._closing:
            await self._read_noticed(self._noticed[:READ_IDS_MAX])
            self._pump()
        if (lines := self._lanes.lines_to_read()) and not self._closing:
            read = store.pending_in_lines
            for line in await self._database.read(read, lines, self._node(), limit=LINE_MAX):
                self._lanes.line_read(
                    line.key, line.recipient, line.oldest, self._clock(), more=line.more
                )

    def _heads_due(self, now_ms: int) -> bool:
        waits = now_ms < self._heads_ms <= now_ms + HEAD_LOOK_MS  # else the clock was set back
        return not waits and self._node() is not None

    async def _look_at_heads(self) -> None:
        """Find those that people have ended, held or sent again on another node."""
        heads = self._lanes.heads()
        for at in range(0, len(heads), READ_IDS_MAX):
            some = {head.id: head for head in heads[at : at + READ_IDS_MAX]}
            waiting, _ = await self._database.read(store.pending_among, list(some), self._node())
            for pending in waiting:
                if pending.due_ms < some.pop(pending.id).due_ms:
                    self._add([pending])
            for head in some.values():
                self._lanes.not_there(head)

    async def _read_noticed(self, ids: list[str]) -> None:
        rows, gone = await self._database.read(store.pending_among, ids, self._node())
        self._add(rows)
        for one in gone:
            self._lanes.gone(one.id)
            if one.recipient is not None:
                self._lanes.read_line(one.key, one.recipient)
        del self._noticed[: len(ids)]

    def _add(self, rows: Iterable[Pending], *, more: bool = False) -> None:
        now_ms = self._clock()
        for pending in rows:
            self._lanes.add(pending, now_ms, more=more)

    # Claimer: lanes -> `sending` in the table -> lanes.

    async def _claim_forever(self) -> None:
        while await self._signal(self._claims):
            while not self._closing and (asked := self._lanes.to_claim(self._clock())):
                ids, now_ms = [delivery_id for delivery_id, _ in asked], self._clock()
                began_s = self._monotonic()
                try:
                    turns: Turns = await self._journal.run(
                        claim, ids, self._node(), now_ms, self.sending_of
                    )
                except StoreFailed as error:
                    _log.error("outbox_cannot_claim", error=str(error))
                    await asyncio.sleep(STORE_PAUSE_S)
                    self._lanes.claim_failed(asked)
                else:
                    self._lanes.claimed(asked, turns, now_ms, began_s)
                    self.counts.held.update(turns.held)
                    self.counts.failed += turns.given_up
                self._pump()
        self._hand_back(self._lanes.hand_back_all())

    def sending_of(self, kind: str, settings: str) -> Sending:
        """Return how deliveries of a connection are sent; called in the writer's thread too."""
        known = self._policies.get((kind, settings))
        if known is None:
            connector = self._connectors.get(kind)
            habits = Habits() if connector is None else connector.habits
            try:
                known = sending_of(habits, msgspec.json.decode(settings))
            except msgspec.ValidationError as error:  # of another release; others must not wait
                _log.error("settings_unreadable", kind=kind, error=str(error))
                known = sending_of(habits, {})
            if len(self._policies) >= POLICIES_MAX:
                self._policies.clear()
            self._policies[kind, settings] = known
        return known

    # One task per attempt.

    async def _send(self, claimed: Claimed) -> None:
        started_ms = self._clock()
        try:
            answer = await self._attempt(claimed, started_ms)
        except asyncio.CancelledError:  # only `close` cancels it, after its grace
            answer, word = Retry(None, None, INTERRUPTED), Word.NOTHING
        else:
            word = _word(answer)
        ended_ms = self._clock()
        number = claimed.attempts + 1
        verdict = decide(
            number,
            answer,
            ended_ms,
            self._rng,
            claimed.sending,
            created_ms=claimed.since_ms or started_ms,
            base_attempts=claimed.base_attempts,
        )
        if isinstance(answer, Refused) and answer.disables and claimed.sealed is None:
            # It goes when the others do.
            reason = gates.disabled_reason(claimed.key[1], answer.error)
            verdict = Verdict(state=State.HELD, next_ms=0, ended_ms=None, reason=reason)
            self.counts.held["disabled"] += 1
        attempt = Attempt(
            attempt=number,
            at_ms=started_ms,
            took_ms=max(0, ended_ms - started_ms),
            status=answer.status,
            error=answer.note if isinstance(answer, Sent) else answer.error,
            delivered=isinstance(answer, Sent),
            message_id=answer.message_id if isinstance(answer, Sent) else None,
        )
        change = _change(claimed.id, attempt, verdict)
        self._steps.append(_Step(change=change, claimed=claimed, attempt=attempt))
        self._tell_gate(claimed, answer, word)
        self.counts.requests[claimed.kind, type(answer).__name__.lower()] += 1
        self._hand_back(self._lanes.answered(claimed.key, answer, ended_ms))
        self._pump()

    async def _attempt(self, claimed: Claimed, now_ms: int) -> Answer:
        project_id, name = claimed.key
        connection, connector = claimed.connection, self._connectors.get(claimed.kind)
        if claimed.sealed is not None:
            sealed, context, settings = claimed.sealed, delivery_context(project_id, claimed.id), {}
        elif connection is None:
            return Refused(
                None,
                f"the connection {name!r} does not exist any more; "
                f"PUT /v1/connections/{name} and resend",
            )
        elif connection.kind != claimed.kind:
            return Refused(
                None,
                f"this is a delivery to {claimed.kind}, and {name!r} is now a connection to "
                f"{connection.kind}; PUT /v1/connections/{name} as one to {claimed.kind} again and "
                "resend",
            )
        else:
            sealed, context = connection.sealed, connection_context(project_id, name)
            settings = msgspec.json.decode(connection.settings)
        if connector is None:
            return Refused(None, f"this release has no connector for {claimed.kind}")
        try:
            credentials = msgspec.json.decode(self._vault.open(sealed, context=context))
        except EngineError as error:  # SealBroken: nothing that another attempt would heal
            return Refused(None, str(error))
        outgoing = Outgoing(
            action=claimed.action,
            message=msgspec.json.decode(claimed.payload),
            credentials=credentials,
            settings=settings,
            delivery_id=claimed.id,
            attempt=claimed.attempts + 1,
            now_ms=now_ms,
            callback_url=callback_url(self._public_url, project_id, name, claimed.id),
            via=claimed.via,
        )
        try:
            async with asyncio.timeout(ATTEMPT_S_MAX):
                answer = await connector.send(self._egress, outgoing)
        except TimeoutError:
            answer = Retry(None, None, f"no answer within {ATTEMPT_S_MAX:g} s")
        except EngineError as error:
            answer = Refused(None, str(error))
        except Exception as error:  # noqa: BLE001 - a bug in one connector stops no other
            trace = scrubbed("".join(format_exception(error)), credentials)
            _log.error("connector_failed", kind=claimed.kind, delivery_id=claimed.id, trace=trace)
            answer = Retry(None, None, f"the connector failed: {type(error).__name__}")
        return _clean(answer, credentials)

    def _tell_gate(self, claimed: Claimed, answer: Answer, word: Word) -> None:
        """Note what all nodes must know of an attempt: of one that went well, mostly nothing."""
        key = claimed.key
        after_ms = (answer.after_ms or 0) if isinstance(answer, Retry) else 0
        is_news = claimed.is_trial or {
            Word.WELL: claimed.is_troubled or key in self._troubled,
            Word.BUSY: after_ms > 0,
            Word.NOTHING: False,
        }.get(word, True)
        if not is_news:
            return
        if word is Word.FAILED and claimed.sealed is None:
            if len(self._troubled) >= TROUBLED_MAX and key not in self._troubled:
                self._troubled.pop(next(iter(self._troubled)))
            self._troubled[key] = claimed.kind
        news = News(
            word=word,
            is_trial=claimed.is_trial,
            error=None if isinstance(answer, Sent) else answer.error,
            after_ms=after_ms,
        )
        self._told.setdefault(key, []).append(news)

    def _hand_back(self, unsent: list[Claimed]) -> None:
        for claimed in unsent:
            change = Change(
                id=claimed.id,
                state=claimed.state,
                attempts=claimed.attempts,
                next_ms=claimed.due_ms,
                ended_ms=None,
            )
            self._steps.append(_Step(change=change, claimed=claimed, attempt=None))
            if claimed.is_trial:
                news = News(word=Word.NOTHING, is_trial=True)
                self._told.setdefault(claimed.key, []).append(news)
        self._results.set()

    # Writer: what became of them -> the table.

    async def _write_forever(self) -> None:
        while not self._all_in:
            await self._results.wait()
            self._results.clear()
            await self._write_steps()

    async def _write_steps(self) -> None:
        while self._steps or self._told:
            steps, self._steps = self._steps, []
            told, self._told = self._told, {}
            self._writing = True
            try:
                if steps:
                    await self._commit(steps)
                    self._written_all(steps)
                    steps = []
                if told:
                    now_ms = self._clock()
                    self._noted(await self._journal.run_alone(gates.note, told, now_ms))
            except StoreFailed as error:
                _log.error("outbox_cannot_write", error=str(error))
                self._steps = steps + self._steps
                for key, news in told.items():
                    self._told[key] = news + self._told.get(key, [])
                if self._closing:
                    break  # they stay in `sending`, and the next start takes them up
                await asyncio.sleep(STORE_PAUSE_S)
                continue
            finally:
                self._writing = False
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

    def _written_all(self, steps: list[_Step]) -> None:
        now_ms = self._clock()
        for step in steps:
            change, claimed = step.change, step.claimed
            if claimed is not None and step.attempt is not None:
                self._lanes.written(claimed.key)
            if claimed is not None and change.state in (State.RETRYING, State.QUEUED):
                pending = Pending(
                    id=change.id,
                    key=claimed.key,
                    due_ms=change.next_ms,
                    recipient=claimed.recipient,
                    place=claimed.place,
                )
                self._lanes.again(pending, now_ms)
            else:
                self._lanes.forget(change.id)
            if step.attempt is not None:
                self.counts.delivered += change.state is State.DELIVERED
                self.counts.retried += change.state is State.RETRYING
                self.counts.failed += change.state is State.FAILED
        self._pump()

    def _noted(self, noted: list[Noted]) -> None:
        """Do as the gates say from now on."""
        now_ms = self._clock()
        for one in noted:
            key, gate = one.key, one.after
            kind = self._troubled.get(key, "") or gates.inline_kind(key)
            if not gate.is_troubled:
                self._troubled.pop(key, None)
            if gate.disabled is not None or gate.breaker is not Breaker.CLOSED:
                self._hand_back(self._lanes.hand_back(key))
            self._lanes.ask_from(key, gate.until_ms, now_ms)
            self.counts.held["disabled"] += one.held
            if one.has_opened:
                self.counts.opened[kind] += 1
                _log.warning("breaker_opened", connection=key[1], error=gate.last_error)
            if gate.disabled is not None and one.before.disabled is None:
                _log.warning("connection_disabled", connection=key[1], reason=gate.disabled)

    async def _take_up_interrupted(self) -> None:
        known = set(self._lanes.known)  # what this outbox is sending itself
        left = await self._database.read(store.left_sending, self._node(), known, self.sending_of)
        steps = [self._taken_up(one) for one in left]
        if steps:
            await self._commit(steps)
            self.counts.recovered += len(steps)
            self.notice(step.change.id for step in steps)
            _log.info("outbox_recovered", deliveries=len(steps))

    def _taken_up(self, left: Left) -> _Step:
        now_ms = self._clock()
        answer = Sent(None, left.message_id) if left.accepted else Retry(None, None, INTERRUPTED)
        number = left.attempts + 1
        verdict = decide(
            number,
            answer,
            now_ms,
            self._rng,
            left.sending,
            created_ms=left.since_ms or now_ms,
            base_attempts=left.base_attempts,
        )
        attempt = Attempt(
            attempt=number,
            at_ms=now_ms,
            took_ms=0,
            status=None,
            error=None if left.accepted else INTERRUPTED,
            delivered=left.accepted,
            message_id=left.message_id,
        )
        return _Step(change=_change(left.id, attempt, verdict), claimed=None, attempt=attempt)

    # Waiting.

    async def _signal(self, event: asyncio.Event) -> bool:
        """Wait for `event`; return False when the outbox closes."""
        if not self._closing:
            await event.wait()
        event.clear()
        return not self._closing

    def _is_settled(self) -> bool:
        reading = self._reading or self._noticed or self._news.is_set()
        writing = self._writing or self._steps or self._told
        return not reading and not writing and self._lanes.is_settled(self._clock())


def _change(delivery_id: str, attempt: Attempt, verdict: Verdict) -> Change:
    return Change(
        id=delivery_id,
        state=verdict.state,
        attempts=attempt.attempt,
        next_ms=verdict.next_ms,
        ended_ms=verdict.ended_ms,
        reason=verdict.reason,
        message_id=attempt.message_id,
    )


def _word(answer: Answer) -> Word:
    """Return what an answer tells about the connection."""
    match answer:
        case Sent():
            return Word.WELL
        case Refused(disables=True):
            return Word.DISABLES
        case Refused(status=None):
            return Word.NOTHING
        case Refused():
            return Word.WELL
        case Retry(status=status):
            return Word.BUSY if status == _TOO_MANY else Word.FAILED


def _clean(answer: Answer, credentials: Any) -> Answer:
    """Return an answer as it may be kept: without credentials, control characters, or end."""
    if isinstance(answer, Sent):
        message_id, note = (
            None if text is None else printable(scrubbed(text, credentials))[:chars_max]
            for text, chars_max in (
                (answer.message_id, MESSAGE_ID_CHARS_MAX),
                (answer.note, ERROR_CHARS_MAX),
            )
        )
        return replace(answer, message_id=message_id, note=note)
    error = printable(scrubbed(answer.error, credentials))
    return replace(answer, error=error[:ERROR_CHARS_MAX])
