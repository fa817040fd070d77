"""Fires what is due: turns the due times of schedules into queued runs, each exactly once.

Path:   wiring -> here -> store.fires (one transaction of the journal) -> Backlog.wake
Never:  fires a due time twice or leaves one out, however many schedulers there are, whichever dies
        and whatever the clock does: a fire's row is unique, and cursors move by nominal times.

Any number of these run on one database. A transaction takes the cursors that are due and that no
other one holds, inserts fires and runs, and moves the cursors on: all of it or nothing.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec
import structlog
from sqlalchemy import Connection

from engine.catalogue import Function
from engine.clock import Clock
from engine.fires import (
    RUNS,
    Outcome,
    Overlap,
    Task,
    Times,
    decide,
    due_times,
    launch,
)
from engine.ids import new_id
from engine.policies import LANES
from engine.store import fires as store
from engine.store.cancellations import cancel_runs, lanes_of
from engine.store.database import Database
from engine.store.fires import Cursor, Due, FireRow
from engine.store.flow import note_here
from engine.store.journal import Commit, Journal
from engine.store.schedules import NEVER_MS, Options, pause, read_options, read_spec
from jobs.schedule import next_after
from jobs.zones import is_zone

CURSORS_MAX: Final = 512  # of one transaction: some 30 ms, which others wait for
FIRES_MAX: Final = 1_000  # the same
DEVICES_MAX: Final = 512  # of a device-local schedule in one transaction
POLL_S: Final = 1.0  # schedules are made and changed by other nodes too
HELD_S: Final = 0.05  # what is due is held by another scheduler: look again
RETRY_S: Final = 1.0  # after the database refused
UNKNOWN_MS: Final = 5_000  # a function that another node has just made may be unknown for so long
ZONES_S: Final = 30.0  # between two looks for time zones in which devices are new
LOOK_BACK_MS: Final = 2 * int(ZONES_S * 1000)  # what a new time zone may have missed by then
# What a stored schedule raises that a later release wrote, or whose time zone is known no more.
UNREADABLE: Final = (ValueError, KeyError, msgspec.MsgspecError)
REPLACED: Final = "the next run of the schedule has taken its place"
_log = structlog.get_logger()


class Catalogue(Protocol):
    """Port: knows what is live. Adapter: `catalogue.Catalogue`."""

    def function_by_id(self, function_id: str) -> Function | None:
        """Return the function, if it has a live version. May be called in any thread."""
        ...


Wake = Callable[[str, int, int], None]
"""Told (project, priority, due) of free rows, once they are committed."""
Cancelled = Callable[[Collection[str]], None]
"""Told the ids of runs that were cancelled, once that is committed."""
_Hint = tuple[str, str, int]  # schedule, time zone, due time


@dataclass(slots=True, kw_only=True)
class Pass:
    """What one transaction did."""

    moved: int = 0  # cursors, and parts of a device-local fire
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    missed: int = 0  # due times, those without a row of their own too
    lag_ms: int = 0  # of the latest to be fired in its time
    woken: dict[tuple[str, int], int] = field(default_factory=dict)  # earliest due
    cancelled: list[str] = field(default_factory=list)
    hints: dict[_Hint, str | None] = field(default_factory=dict)


class Scheduler:
    """One of the schedulers of a database. `start`, then `close`."""

    def __init__(
        self,
        database: Database,
        journal: Journal,
        catalogue: Catalogue,
        clock: Clock,
        *,
        wake: Wake,
        cancelled: Cancelled,
        has_room: Callable[[str, int], bool],
        counts: Counter[str] | None = None,
    ) -> None:
        """`counts`: its `schedule_missed` is added to.

        `has_room` says whether a project (id) may have so many runs more in the queue; it is asked
        in the journal's thread.
        """
        self._database = database
        self._journal = journal
        self._catalogue = catalogue
        self._clock = clock
        self._wake = wake
        self._cancelled = cancelled
        self._has_room = has_room
        self._counts: Counter[str] = Counter() if counts is None else counts
        self._poked = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self._zones_at_s = 0.0  # by the loop's clock
        # Where a large device-local fire goes on; only spares looking at devices that are done.
        self._hints: dict[_Hint, str] = {}
        self.lag_s = 0.0  # how late the last schedule fired
        self.outcomes: Counter[Outcome] = Counter()  # since the start

    @property
    def missed_count(self) -> int:
        return self._counts["schedule_missed"]

    async def start(self) -> None:
        """Begin to fire; what became due while nobody did is caught up with first."""
        self._task = asyncio.create_task(self._run(), name="scheduler")

    def poke(self) -> None:
        """Look now: a schedule was made or changed."""
        self._poked.set()

    async def close(self) -> None:
        """Stop, once the transaction that is under way is over."""
        self._closing = True
        self.poke()
        if self._task is not None:
            await asyncio.wait([self._task])

    async def fire_due(self) -> Pass:
        """Fire what is due now, as much as one transaction takes.

        Raises:
            EngineError: nothing was fired.
        """
        commit, now_ms = Commit(), self._clock()
        commit.change = lambda connection: _Firing(
            connection, commit, self._catalogue, self._hints, now_ms, self._has_room
        ).fire()
        done: Pass = await self._journal.commit(commit)
        for hint, device_id in done.hints.items():
            self._hints.pop(hint, None)
            if device_id is not None:
                self._hints[hint] = device_id
        self.outcomes += done.outcomes
        self._counts["schedule_missed"] += done.missed
        if done.outcomes.keys() & RUNS:
            self.lag_s = done.lag_ms / 1000
        if done.missed:
            _log.warning("schedules_missed", due_times=done.missed)
        if done.cancelled:
            self._cancelled(done.cancelled)
        for (project_id, priority), due_ms in done.woken.items():
            self._wake(project_id, priority, due_ms)
        return done

    async def find_zones(self) -> None:
        """Give device-local schedules a cursor in each time zone that has devices."""
        found = await self._database.read(_new_zones, self._clock())
        if any(found):
            await self._journal.run(_put_zones, self._clock())

    async def _run(self) -> None:
        while not self._closing:
            try:
                wait_s = await self._turn()
            except Exception:  # noqa: BLE001 - one bad turn must not stop all schedules
                _log.exception("scheduler_failed")
                wait_s = RETRY_S
            await self._pause(wait_s)

    async def _turn(self) -> float:
        """Do what is to be done now; return for how long there is nothing."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self._zones_at_s:
            self._zones_at_s = loop.time() + ZONES_S  # also if it fails: what is due comes first
            await self.find_zones()
        next_ms = await self._database.read(store.next_due)
        if next_ms is None:
            return POLL_S
        wait_ms = next_ms - self._clock()
        if wait_ms > 0:
            return min(POLL_S, wait_ms / 1000)
        done = await self.fire_due()
        return 0.0 if done.moved else HELD_S

    async def _pause(self, wait_s: float) -> None:
        if wait_s > 0 and not self._closing:
            try:
                async with asyncio.timeout(wait_s):
                    await self._poked.wait()
            except TimeoutError:
                pass
        self._poked.clear()


class _Firing:
    """One transaction. Runs in the journal's thread."""

    def __init__(
        self,
        connection: Connection,
        commit: Commit,
        catalogue: Catalogue,
        hints: Mapping[_Hint, str],
        now_ms: int,
        has_room: Callable[[str, int], bool],
    ) -> None:
        self._connection = connection
        self._has_room = has_room
        self._commit = commit
        self._catalogue = catalogue
        self._hints = hints
        self._now_ms = now_ms
        self._fires: list[FireRow] = []
        self._missed_locally: list[FireRow] = []
        self._rows: list[tuple[Any, ...]] = []
        self._made: Counter[str] = Counter()  # rows, by project
        self._cursors: list[Cursor] = []
        self._done = Pass()

    def fire(self) -> Pass:
        connection, done = self._connection, self._done
        dues = store.due_cursors(connection, self._now_ms, CURSORS_MAX)
        self._cursors += [
            (due.schedule_id, due.timezone, NEVER_MS) for due in dues if due.paused_ms is not None
        ]
        ready = [due for due in dues if due.paused_ms is None and self._can_run(due)]
        self._fire_plain([due for due in ready if due.product_id is None])
        for due in ready:
            if due.product_id is not None and len(self._fires) < FIRES_MAX:
                self._fire_local(due)
        store.insert_fires(connection, self._fires)
        store.insert_missed(connection, self._missed_locally)
        done.woken = store.insert_runs(connection, self._rows)
        store.advance(connection, self._cursors)
        done.moved += len(self._cursors)
        return done

    def _can_run(self, due: Due) -> bool:
        """Say whether its function is known here; for a moment another node may know more."""
        if self._catalogue.function_by_id(due.function_id) is not None:
            return True
        return self._now_ms - due.next_ms > UNKNOWN_MS

    def _fire_plain(self, dues: list[Due]) -> None:
        taken: list[tuple[Due, Times]] = []
        pairs: list[tuple[str, int]] = []
        for due in dues:
            times = self._times(due) if len(pairs) < FIRES_MAX else None
            if times is not None:
                taken.append((due, times))
                pairs += [(due.schedule_id, at_ms) for at_ms in (*times.missed_ms, *times.due_ms)]
        known = store.fired_among(self._connection, pairs)
        alive = store.alive(
            self._connection,
            [due.schedule_id for due, _ in taken if _options(due).overlap != Overlap.ALLOW_ALL],
        )
        for due, times in taken:
            of = due.schedule_id
            self._fires += self._missed(due, times, known)
            at = [at_ms for at_ms in times.due_ms if (of, at_ms) not in known]
            self._take(_task(due), at, alive.get(of, []))
            self._cursors.append((of, due.timezone, times.next_ms))

    def _fire_local(self, due: Due) -> None:
        """Fire for some devices; the cursor stays until all of them have a row."""
        times = self._times(due)
        if times is None:
            return
        if times.missed_ms:
            self._missed_locally += self._missed(due, times, {})
            next_ms = times.due_ms[0] if times.due_ms else times.next_ms
            self._cursors.append((due.schedule_id, due.timezone, next_ms))
            return
        hint = (due.schedule_id, due.timezone, due.next_ms)
        device_ids = store.unfired_devices(
            self._connection, due, self._hints.get(hint, ""), DEVICES_MAX
        )
        alive: dict[str, list[str]] = {}
        if _options(due).overlap != Overlap.ALLOW_ALL:
            alive = store.alive_by_device(self._connection, due.schedule_id, device_ids)
        task = _task(due)
        for device_id in device_ids:
            self._take(task, [due.next_ms], alive.get(device_id, []), device_id)
        if len(device_ids) == DEVICES_MAX:
            self._done.hints[hint] = device_ids[-1]
            self._done.moved += 1
            return
        self._done.hints[hint] = None
        next_ms = times.due_ms[1] if len(times.due_ms) > 1 else times.next_ms
        self._cursors.append((due.schedule_id, due.timezone, next_ms))

    def _times(self, due: Due) -> Times | None:
        """Return what is due; None: the schedule cannot be read, and has been paused."""
        try:
            spec = read_spec(due.spec).in_zone(due.timezone)
            return due_times(spec, due.next_ms, self._now_ms, _options(due).catchup_ms)
        except UNREADABLE as error:  # one bad schedule must not stop the others
            _log.error("schedule_broken", schedule_id=due.schedule_id, error=str(error))
            pause(self._connection, due.schedule_id, f"cannot be read: {error}", self._now_ms)
            self._done.moved += 1
            return None

    def _missed(self, due: Due, times: Times, known: Collection[tuple[str, int]]) -> list[FireRow]:
        self._done.missed += len(times.missed_ms) + times.left_out
        rows: list[FireRow] = []
        for at_ms in times.missed_ms:
            is_last = at_ms == times.missed_ms[-1]
            outcome = Outcome.MISSED_MORE if is_last and times.left_out else Outcome.MISSED
            if (due.schedule_id, at_ms) not in known:
                rows.append((due.schedule_id, at_ms, "", self._now_ms, outcome.value, None))
                self._done.outcomes[outcome] += 1
        return rows

    def _take(
        self,
        task: Task,
        times: Sequence[int],
        alive: Collection[str],
        device_id: str | None = None,
    ) -> None:
        """Decide about due times whose rows are not there yet, and queue what shall run."""
        overlap = Overlap(task.options.overlap)
        count = len(alive)
        for at_ms in times:
            outcome = decide(overlap, count)
            if overlap is Overlap.CANCEL_OTHER and at_ms != times[-1]:
                outcome = Outcome.OVERLAPPED  # the last one would cancel it before it began
            if outcome in RUNS and not self._has_room(
                task.project_id, self._made[task.project_id] + 1
            ):
                outcome = Outcome.QUEUE_FULL
            run_id = self._launch(task, at_ms, device_id) if outcome in RUNS else None
            if outcome in RUNS and run_id is None:
                outcome = Outcome.NOTHING_TO_RUN
            if run_id is not None:
                count += 1
                self._done.lag_ms = max(self._done.lag_ms, self._now_ms - at_ms)
            if outcome is Outcome.REPLACED:
                self._cancel(task, alive)
            row = (task.schedule_id, at_ms, device_id or "", self._now_ms, outcome.value, run_id)
            self._fires.append(row)
            self._done.outcomes[outcome] += 1

    def _cancel(self, task: Task, ids: Collection[str]) -> None:
        for lane in lanes_of(self._connection, task.project_id, ids):
            self._commit.gather(LANES, lane)
        self._done.cancelled += cancel_runs(
            self._connection, task.project_id, ids, self._now_ms, REPLACED
        )

    def _launch(self, task: Task, at_ms: int, device_id: str | None) -> str | None:
        function = self._catalogue.function_by_id(task.function_id)
        if function is None:
            return None
        run_id = new_id("exe")
        made = launch(
            task, function, run_id=run_id, due_ms=at_ms, now_ms=self._now_ms, device_id=device_id
        )
        if made is None:
            return None
        self._rows.append(made.row)
        self._made[task.project_id] += 1
        note_here(self._connection, made.queued, run_id, self._now_ms)
        return run_id


def _options(due: Due) -> Options:
    return read_options(due.options)


def _task(due: Due) -> Task:
    return Task(
        schedule_id=due.schedule_id,
        project_id=due.project_id,
        function_id=due.function_id,
        spec=read_spec(due.spec).in_zone(due.timezone),
        options=_options(due),
        payload=due.payload,
    )


def _new_zones(connection: Connection, now_ms: int) -> tuple[list[Cursor], list[tuple[str, str]]]:
    """Return the cursors that device-local schedules lack, and (schedule, zone) without devices."""
    schedules = store.local_schedules(connection)
    zones = store.zones_of(connection, {one.product_id for one in schedules})
    known = store.cursor_zones(connection, [one.id for one in schedules])
    lacking: list[Cursor] = []
    needless: list[tuple[str, str]] = []
    for one in schedules:
        needless += [(one.id, zone) for zone in known[one.id] - zones[one.product_id]]
        since_ms = max(one.updated_ms, now_ms - LOOK_BACK_MS)
        for zone in zones[one.product_id] - known[one.id]:
            if not is_zone(zone):  # a device's may be one that this machine does not know
                continue
            try:
                next_ms = next_after(read_spec(one.spec).in_zone(zone), since_ms)
            except UNREADABLE:
                next_ms = since_ms  # it is due at once, and paused when it shall fire
            lacking.append((one.id, zone, NEVER_MS if next_ms is None else next_ms))
    return lacking, needless


def _put_zones(connection: Connection, now_ms: int) -> None:
    lacking, needless = _new_zones(connection, now_ms)
    store.add_cursors(connection, lacking)
    store.remove_cursors(connection, needless)
