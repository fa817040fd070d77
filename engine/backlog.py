"""The queued runs that are this node's: claimed when there is room, handed to the dispatcher.

Path:   journal (committed) -> `submit` -> dispatch;  ticket, timer or poll -> claim -> dispatch
Never:  forgets a row: what memory has no room for stays free in the store, for any node.

A ticket says that a project has work. Tickets may be lost, doubled or late: the poll finds free
rows by itself, so a transport that is gone costs a second, and no run.
"""

import asyncio
import time
from bisect import insort
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable
from contextlib import suppress
from typing import Final, Protocol

import structlog

from engine.batches import Batches
from engine.catalogue import Catalogue, Device
from engine.changes import Changes
from engine.clock import Clock
from engine.errors import EngineError, NotFound
from engine.events import joined_values, write_input
from engine.fair_share import OUTSIDE
from engine.flow import OrderKey, order_key
from engine.policies import read_queued
from engine.quotas import CAUSAL_BUDGET
from engine.run import Run
from engine.store import nodes as store_nodes
from engine.store import run_queue as store
from engine.store.cancellations import cancel_deleted, cancel_runs
from engine.store.database import Database
from engine.store.flow import unpark_stale
from engine.store.journal import Journal
from jobs.tickets import Ticket, Tickets
from runtimes.contract import GuestError, Outcome

CLAIM_ROWS: Final = 512  # of one transaction
HELD_BYTES_MAX: Final = 256 * 1024 * 1024  # of inputs; beyond it next to nothing is claimed
PROJECT_BYTES_MAX: Final = HELD_BYTES_MAX // 4  # of one project's: none fills it for the others
LET_GO_ROWS: Final = 100  # that are given back in one go, while nothing else runs
SPARE_ROWS: Final = 8  # that a project without any here may claim even then
POLL_S: Final = 1.0
POLL_S_MAX: Final = 5.0
OVERDUE_MS: Final = 2_500  # a row that is free for so long is claimed without a ticket
AUDIT_EVERY: Final = 10  # polls
TIMER_MS_MAX: Final = 60_000  # later ones are found by the poll when they come nearer
TAKEOVERS_MAX: Final = 20  # nodes that may die while a run is theirs before it is given up
_log = structlog.get_logger()


class Desk(Protocol):
    """Port: runs what it is given. Adapter: `dispatch.Dispatcher`."""

    def submit(self, run: Run) -> None: ...

    def cancel(self, run: Run) -> None:
        """Stop the run as soon as its cell can be reached; what it does meanwhile is void."""
        ...


class Backlog:
    """The queued runs of this node."""

    def __init__(
        self,
        database: Database,
        journal: Journal,
        catalogue: Catalogue,
        changes: Changes,
        desk: Desk,
        tickets: Tickets,
        *,
        clock: Clock,
        settle: Callable[[Run], None],
        cancelled: Callable[[Collection[str]], None],
        window: int,
        runs_here: bool,
        shared: bool,
        counts: Counter[str],
        changed: Callable[[str, int], None],
        held_back: Container[str],
    ) -> None:
        """`settle` takes runs that end without having run, `cancelled` ids that a run cancelled.

        `window`: runs of one project that this node may hold. `runs_here`: whether this node runs
        what is queued, else it only issues tickets. `shared`: other nodes get the tickets too.
        `changed` is told (project, rows) that were added to the queue or, below 0, have left it.
        `held_back` has the projects of which nothing is claimed for now.
        """
        self._database = database
        self._journal = journal
        self._catalogue = catalogue
        self._changes = changes
        self._desk = desk
        self._tickets = tickets
        self._clock = clock
        self._settle = settle
        self._cancelled = cancelled
        self._window = window
        self._runs_here = runs_here
        self._shared = shared
        self._counts = counts
        self._changed = changed
        self._held_back = held_back
        self._held: dict[str, Run] = {}
        self._held_bytes = 0
        self._shares: Counter[str] = Counter()  # of `_held`, by project
        self._bytes: Counter[str] = Counter()  # of `_held_bytes`, by project
        self._wanted: set[str] = set()  # projects that may have rows nobody has claimed
        self._pulling: dict[str, asyncio.Task[None]] = {}  # by project
        self._timers: dict[tuple[str, int], tuple[int, asyncio.TimerHandle]] = {}
        self._chains: dict[str, list[Run]] = {}  # ordered lanes: what waits for the one at work
        self._batches = Batches(desk.submit, clock)
        self._suspects: tuple[set[str], set[str]] = (set(), set())  # of the last audit
        self._poller: asyncio.Task[None] | None = None
        self._look = asyncio.Event()
        self._closing = False
        self._lost = False  # this node was taken over, and is no new one yet

    @property
    def count(self) -> int:
        return len(self._held)

    def running(self) -> list[str]:
        """Return the ids of queued runs that are in a cell now."""
        alone = [run.execution_id for run in self._held.values() if run.started_ns]
        return alone + self._batches.running()

    def start(self) -> None:
        """Begin to look for work; the first look finds what an earlier process left."""
        self._poller = asyncio.create_task(self._poll_forever(), name="backlog")

    def owner(self, project_id: str) -> str | None:
        """Return whose a new row of the project is: this node's, or nobody's yet."""
        return self._journal.node_id if self._has_room(project_id) else None

    def submit(self, runs: Iterable[Run]) -> None:
        """Take runs whose rows were just committed: this node's are run, of others is told."""
        for run in runs:
            self._changed(run.project_id, 1)
            if run.owner is not None and run.owner == self._journal.node_id:
                self._take(run)
            else:
                self.wake(run.project_id, run.priority, run.due_ms)

    def wake(self, project_id: str, priority: int = store.DEFAULT, due_ms: int = 0) -> None:
        """Have a free row claimed, now or when it is due, by whichever node."""
        wait_ms = due_ms - self._clock()
        if wait_ms <= 0:
            self._counts["tickets_issued"] += 1
            self._tickets.issue(Ticket(project_id, priority))
        elif wait_ms <= TIMER_MS_MAX:
            key = (project_id, priority)
            known = self._timers.get(key)
            if known is not None and known[0] <= due_ms:
                return
            if known is not None:
                known[1].cancel()
            timer = asyncio.get_running_loop().call_later(wait_ms / 1000, self._due, key, due_ms)
            self._timers[key] = (due_ms, timer)

    def look(self) -> None:
        """Look for free rows now: somebody has left some, or this node is one again."""
        self._lost = False
        self._look.set()

    def take_ticket(self, ticket: Ticket) -> None:
        """Claim what the ticket's project has, as far as there is room."""
        if self._runs_here and not self._closing:
            self._counts["tickets_taken"] += 1
            self._wanted.add(ticket.project_id)
            self._pull_soon(ticket.project_id)

    async def claim_for(self, ticket: Ticket) -> None:
        """Do as `take_ticket`, and return when the claim is over."""
        self.take_ticket(ticket)
        pulling = self._pulling.get(ticket.project_id)
        if pulling is not None:
            with suppress(asyncio.CancelledError):
                await asyncio.shield(pulling)

    def cancel(self, ids: Collection[str]) -> None:
        """Stop those of these runs that are here: their rows are gone already."""
        for run_id in ids:
            run = self._held.get(run_id)
            if run is not None:
                self._stop(run)

    def drop_all(self) -> None:
        """Stop everything: this node was taken over, and all of it is somebody else's.

        Until `look` nothing is claimed: it would be a dead node's.
        """
        self._lost = True
        self._wanted.update(self._shares)
        self._chains.clear()
        for run in tuple(self._held.values()):
            self._stop(run)
            # It may be on a thread still. Its row may come back to this node under its new name.
            run.on_end = None
            self._forget(run)

    def ended(self, run: Run) -> None:
        """The run has its record, or somebody else has the run."""
        project_id = run.project_id
        if not self._forget(run):
            return
        if not (run.stays or run.retried):
            self._changed(project_id, -1)
        if run.policy.order and run.lane is not None:
            self._next_of(run.lane, run)
        if project_id in self._wanted and self._shares[project_id] < self._window // 2:
            self._pull_soon(project_id)

    async def close(self) -> None:
        """Stop claiming, and give back what has not begun."""
        self._closing = True
        tasks = [*self._pulling.values(), *([self._poller] if self._poller else [])]
        for _, timer in self._timers.values():
            timer.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        begun = set(self.running())
        waiting = [
            run for run_id, run in self._held.items() if run_id not in begun and run.outcome is None
        ]
        if waiting:
            self._chains.clear()  # else the end of each would begin the next
            for run in waiting:
                self._stop(run)
            await self._give_back([run.execution_id for run in waiting])

    # What is here.

    def _has_room(self, project_id: str) -> bool:
        return (
            self._runs_here
            and not self._closing
            and not self._lost
            and self._shares[project_id] < self._window
            and self._bytes[project_id] < PROJECT_BYTES_MAX
            and (self._held_bytes < HELD_BYTES_MAX or not self._shares[project_id])
            and project_id not in self._held_back
        )

    def _take(self, run: Run) -> None:
        run.on_end = self.ended
        self._held[run.execution_id] = run
        self._held_bytes += len(run.input)
        self._bytes[run.project_id] += len(run.input)
        self._shares[run.project_id] += 1
        if run.handler == "queue":
            self._batches.add(run)
        elif run.policy.order and run.lane is not None:
            self._line_up(run.lane, run)
        else:
            self._desk.submit(run)

    def _forget(self, run: Run) -> bool:
        if self._held.get(run.execution_id) is not run:
            return False  # it was dropped; perhaps it is here again, as another object
        del self._held[run.execution_id]
        self._held_bytes -= len(run.input)
        self._bytes[run.project_id] -= len(run.input)
        self._shares[run.project_id] -= 1
        if not self._shares[run.project_id]:
            del self._shares[run.project_id], self._bytes[run.project_id]
        return True

    def _line_up(self, lane: str, run: Run) -> None:
        waiting = self._chains.get(lane)
        if waiting is None:
            self._chains[lane] = []
            self._desk.submit(run)
        else:
            insort(waiting, run, key=_place)

    def _next_of(self, lane: str, run: Run) -> None:
        waiting = self._chains.get(lane)
        if waiting is None:
            return
        if run in waiting:  # it never began
            waiting.remove(run)
        elif not waiting:
            del self._chains[lane]
        elif run.retried:  # it keeps its place: the others are parked in the store until it ends
            del self._chains[lane]
            for later in waiting:
                self._forget(later)
        else:
            self._desk.submit(waiting.pop(0))

    def _stop(self, run: Run) -> None:
        run.owner = None
        waiting = self._chains.get(run.lane or "", ())
        if run in waiting or self._batches.discard(run.execution_id):
            self.ended(run)
        else:
            self._desk.cancel(run)

    # What the store has.

    def _due(self, key: tuple[str, int], due_ms: int) -> None:
        del self._timers[key]
        self.wake(*key, due_ms=due_ms)

    def _pull_soon(self, project_id: str) -> None:
        if project_id not in self._pulling and self._has_room(project_id):
            self._pulling[project_id] = self._spawn(self._pull(project_id))

    async def _pull(self, project_id: str) -> None:
        try:
            while project_id in self._wanted and self._has_room(project_id):
                self._wanted.discard(project_id)
                if await self._claim(project_id):
                    self._wanted.add(project_id)
        except EngineError as error:
            self._wanted.add(project_id)  # the poll comes by here again
            _log.warning("claim_failed", project_id=project_id, error=str(error))
        finally:
            self._pulling.pop(project_id, None)

    async def _claim(self, project_id: str) -> bool:
        """Claim once; return whether there may be more."""
        room = self._window - self._shares[project_id]
        if self._held_bytes >= HELD_BYTES_MAX:
            room = SPARE_ROWS
        node_id = self._journal.node_id
        assert node_id is not None
        claim = await self._journal.run_alone(
            store.claim, project_id, node_id, self._clock(), min(room, CLAIM_ROWS)
        )
        if claim.wake_ms is not None:
            self.wake(project_id, due_ms=claim.wake_ms)
        if claim.more and self._shared:
            self._tickets.issue(Ticket(project_id, store.DEFAULT))  # others may help
        left = list(claim.rows)
        try:
            if claim.cancelled:  # not with the claim: who ends one of them may wait for its lane
                now_ms = self._clock()
                await self._journal.run(
                    cancel_runs, project_id, claim.cancelled, now_ms, "a newer one took its place"
                )
                self._cancelled(claim.cancelled)
            await self._changes.catch_up(claim.changes_seq)
            strays = []
            while left:
                if not await self._admit(left[0], node_id):
                    strays.append(left[0].id)
                left.pop(0)
            if strays:
                await self._journal.run(cancel_deleted, project_id, strays, self._clock())
        finally:
            if left:  # something went wrong: they are this node's, and in no memory
                await self._give_back([row.id for row in left])
        return claim.more

    async def _admit(self, row: store.Queued, node_id: str) -> bool:
        """Take a row that was claimed; return whether its function is known."""
        run = await self._revive(row)
        if run is None:
            return False
        if row.id in self._held or node_id != self._journal.node_id:
            return True
        run.owner = node_id
        if row.skip is not None:
            run.skip_reason, message = row.skip
            run.outcome = Outcome.SKIPPED
            run.error = GuestError(name="Skipped", message=message)
        elif row.takeovers >= TAKEOVERS_MAX:
            run.outcome = Outcome.CRASHED
            message = f"{row.takeovers} nodes of the engine died while they had it"
            run.error = GuestError(name="Crash", message=message)
        if run.outcome is None:
            self._take(run)
        else:
            run.clock_ms = self._clock()
            run.ended_ns = time.monotonic_ns()
            self._settle(run)
        return True

    async def _poll_forever(self) -> None:
        polls_count = 0
        while True:
            started = time.monotonic()
            try:
                await self._poll()
                if polls_count % AUDIT_EVERY == AUDIT_EVERY - 1:
                    await self._audit()
            except Exception as error:  # noqa: BLE001 - the database may be away; the poll goes on
                _log.warning("backlog_not_read", error=str(error))
            polls_count += 1
            # Many projects with free rows make the poll longer, and so rarer; not so an outage.
            pause_s = min(POLL_S_MAX, max(POLL_S, 10 * (time.monotonic() - started)))
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._look.wait()
            self._look.clear()

    async def _poll(self) -> None:
        await self._let_go()
        now_ms = self._clock()
        for due in await self._database.read(store.soonest):
            ticket = Ticket(due.project_id, due.priority)
            if due.due_ms < now_ms - OVERDUE_MS:
                self.take_ticket(ticket)
            self.wake(due.project_id, due.priority, due.due_ms)

    async def _let_go(self) -> None:
        """Give back what waits here of projects that may not run for now: others need the room.

        What is in a cell, or was in one that died, or is somebody's trial, stays.
        """
        gone: list[str] = []
        for line in self._chains.values():  # first what waits for the one at work in its lane
            if line and line[0].project_id in self._held_back:
                for run in line:
                    run.owner = None
                    self._forget(run)
                gone += [run.execution_id for run in line]
                line.clear()
        known = (*self._batches.at_work(), *self._held.values())
        waiting = [run for run in known if self._may_go(run)]
        while gone or waiting:
            some, waiting = waiting[:LET_GO_ROWS], waiting[LET_GO_ROWS:]
            for run in some:
                if self._may_go(run):  # it has not begun meanwhile
                    gone += self._let_one_go(run)
            for at in range(0, len(gone), CLAIM_ROWS):
                await self._give_back(gone[at : at + CLAIM_ROWS])
            gone = []

    def _may_go(self, run: Run) -> bool:
        is_batch_or_no_message = run.messages or run.handler != "queue"
        return bool(
            run.project_id in self._held_back
            and run.charged_ns == OUTSIDE
            and not (run.started_ns or run.losses or run.trial or run.outcome)
            and (is_batch_or_no_message or self._batches.has(run.execution_id))
        )

    def _let_one_go(self, run: Run) -> list[str]:
        """Take a run, or a batch, that waits from the desk; return the ids of its rows."""
        rows = run.messages or (run,)
        for row in rows:
            row.owner, row.stays = None, True
        self._stop(run)
        for row in rows:
            if row.execution_id in self._held:  # the desk does not have it: the guard does
                row.owner, row.stays = self._journal.node_id, False
        return [row.execution_id for row in rows if row.stays]

    async def _audit(self) -> None:
        """Compare what is here with what the store says is here; what differs twice is mended.

        After a lost answer from the database either side may not know of the other.
        """
        for project_id, priority in await self._journal.run_alone(unpark_stale, CLAIM_ROWS):
            self.wake(project_id, priority)
        if not self._runs_here:
            return
        await self._journal.barrier()
        stored = await self._database.read(store_nodes.mine, self._journal.node_id or "")
        held = set(self._held)
        unknown, gone = stored - held, held - stored
        unknown_before, gone_before = self._suspects
        self._suspects = (unknown, gone)
        self.cancel(gone & gone_before)
        strays = unknown & unknown_before
        if strays:
            _log.warning("runs_not_held", count=len(strays), first=min(strays))
            await self._give_back(list(strays))
            self._wanted.update(self._shares)

    async def _give_back(self, ids: list[str]) -> None:
        try:
            await self._journal.run(store_nodes.free_runs, self._journal.node_id or "", ids)
        except EngineError as error:  # the audit will find them
            _log.warning("runs_not_given_back", count=len(ids), error=str(error))

    def _spawn(self, work: "asyncio._CoroutineLike[None]") -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(work)

    async def _revive(self, row: store.Queued) -> Run | None:
        function = self._catalogue.function_by_id(row.function_id)
        if function is None:
            return None  # deleted
        version = function.choose(row.id)
        device = None
        if row.device_id is not None:
            try:
                device = await self._catalogue.device_by_id(row.project_id, row.device_id)
            except NotFound:
                _log.warning("device_gone", execution_id=row.id, device_id=row.device_id)
        return Run(
            execution_id=row.id,
            version=version,
            handler=row.handler,
            cause=row.cause,
            limits=version.limits(row.handler),
            input=_given(row, device),
            created_ms=row.created_ms,
            created_ns=time.monotonic_ns() - _age_ns(row, self._clock()),
            root_id=row.root_id,
            depth=row.depth,
            event_id=row.event_id,
            device=device,
            queued=True,
            attempt=row.attempt,
            job_id=row.job_id,
            schedule_id=row.schedule_id,
            lane=row.lane,
            position_ms=row.position_ms,
            priority=row.priority,
            due_ms=row.due_ms,
            origin=row.origin or "",
            path=row.path or "",
            budget=CAUSAL_BUDGET if row.budget is None else row.budget,
            policy=read_queued(row.policy),
        )


def _age_ns(row: store.Queued, now_ms: int) -> int:
    """Return how long the run has waited already: since it was due, as far as clocks can tell."""
    return max(0, now_ms - max(row.due_ms, row.created_ms)) * 1_000_000


def _place(run: Run) -> OrderKey:
    return order_key(run.position_ms, run.event_id, run.execution_id)


def _given(row: store.Queued, device: Device | None) -> bytes:
    if row.input is not None:
        return row.input.encode()
    if device is None or row.event_id is None or row.payload is None:
        return (row.payload or "null").encode()
    return write_input(
        row.handler,
        device,
        row.event_id,
        joined_values(row.payload),
        row.created_ms,
        row.source or "http",
    )
