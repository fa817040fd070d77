"""Deletes what projects keep no longer, a little at a time, beside everything else that is written.

Path:   wiring -> start; every minute: rules -> what goes (a reader's thread) -> steps (the journal)
Never:  holds the writer for more than some milliseconds at a time, or for a large part of its time;
        believes a clock that has just jumped.

Of several nodes the oldest works. Two that do it at once, while one takes the other for dead, do
no harm: see store.retention.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import structlog
from sqlalchemy import Connection

from engine.clock import Clock, iso
from engine.errors import EngineError
from engine.retention_rules import DAY_MS, HOUR_MS, Keep, Kind, keeps
from engine.retention_usage import cut_id, cut_ms
from engine.store import retention as store
from engine.store import retention_values as values_store
from engine.store.database import Database
from engine.store.journal import Commit, Journal
from engine.store.retention import Ask
from engine.store.tables import values

PASS_S: Final = 60.0  # between two looks, when there is nothing to do
STEP_ROWS_MAX: Final = 500
STEP_ROWS_MIN: Final = 20
STEP_S: Final = 0.005  # how long a step may hold the writer; the next one has more or fewer rows
PAUSE_S: Final = 0.02  # after each step, at least
SHARE: Final = 4  # a step that took so long is followed by a pause so many times as long
TURN_ROWS: Final = 5_000  # then it is the next kind's turn, and the rules are read again
COUNT_SHARE: Final = 20  # counting that took so long is not done again for so many times as long
ASKS: Final = 64  # of one read
LOOK_AGAIN_S: Final = 3_600.0  # until what was passed over is looked at once more
LOOK_AGAIN_EVENTS_S: Final = 86_400.0  # ... of events, where it is more to walk through
SCHEDULES: Final = 20  # of one step
RESTS_MAX: Final = 10_000
JUMP_S: Final = 300.0  # a wall clock that is off by so much since the last look has jumped
DISTRUST_S: Final = 3_600.0  # and is not believed for so long: it may jump back
OWN_MS: Final = {  # what the engine keeps for itself
    "idempotency_keys": DAY_MS,
    "value_ids": 7 * DAY_MS,
    "changes": HOUR_MS,
    "flow_marks": DAY_MS,
    "connection_gates": 2 * DAY_MS,
    "delivery_counts": 2 * DAY_MS,
}
BY_ID: Final = (Kind.LOGS, Kind.EXECUTIONS, Kind.JOBS, Kind.DEAD_LETTERS, Kind.DELIVERIES)
_log = structlog.get_logger()

_Sized = tuple[Kind, str, Keep]  # of a project


class _Walked(NamedTuple):
    """How far a kind has been gone through by age, and since when."""

    until_id: str
    began_s: float


class Retention:
    """The background task, and its parts for whoever wants no task."""

    def __init__(
        self,
        database: Database,
        journal: Journal,
        clock: Clock,
        keep: Mapping[Kind, Keep],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take what it works with.

        Args:
            database: where it looks for what goes.
            journal: through which it goes.
            clock: ages are counted from its time.
            keep: what is kept of a project that has said nothing: `retention_rules.defaults`.
            monotonic: seconds by a clock that does not jump.
        """
        self._database = database
        self._journal = journal
        self._clock = clock
        self._keep = keep
        self._monotonic = monotonic
        self.deleted: Counter[str] = Counter()  # rows since the start, by kind
        self._step_rows = STEP_ROWS_MAX
        self._walked: dict[tuple[Kind, tuple[str, ...], bool], _Walked] = {}
        self._cuts: dict[_Sized, str | int] = {}  # what has been counted, and is not all gone yet
        self._rest_s: dict[_Sized, float] = {}  # until when it is not counted again
        self._offset_s = self._wall_offset_s()
        self._believe_s = 0.0  # from when on the wall clock is believed
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._forever(), name="retention")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def sweep(self) -> int:
        """Delete all that goes by now; return how many rows that were."""
        before = self.deleted.copy()
        while await self._turns():
            pass
        gone = self.deleted - before
        if gone:
            _log.info("retention", **gone)
        return gone.total()

    def believes_clock(self) -> bool:
        """Say whether ages can be told: a clock that jumps ahead must not make everything old."""
        offset_s, now_s = self._wall_offset_s(), self._monotonic()
        if abs(offset_s - self._offset_s) > JUMP_S:
            jump_s = round(offset_s - self._offset_s)
            self._believe_s = now_s + DISTRUST_S
            _log.warning("retention_waits_for_clock", jumped_s=jump_s, for_s=round(DISTRUST_S))
        self._offset_s = offset_s
        return now_s >= self._believe_s

    def _wall_offset_s(self) -> float:
        return self._clock() / 1000 - self._monotonic()

    async def _forever(self) -> None:
        while True:
            await asyncio.sleep(PASS_S)
            try:
                if self.believes_clock() and await self._is_its_turn():
                    await self.sweep()
            except EngineError as error:  # the database is away, or its disk is full: later then
                _log.warning("retention_failed", error=str(error))

    async def _is_its_turn(self) -> bool:
        node_id, database_ms = await self._database.read(store.whose_turn)
        if database_ms is not None and abs(database_ms - self._clock()) > JUMP_S * 1000:
            _log.warning("retention_waits_for_clock", database=iso(database_ms))
            return False
        return node_id is None or node_id == self._journal.node_id

    # One turn of each kind of each project.

    async def _turns(self) -> bool:
        """Return whether there is more."""
        now_ms = self._clock()
        rules = await self._database.read(store.rules_of_all)
        kept = {project_id: keeps(self._keep, said) for project_id, said in rules.items()}
        more = await self._own(now_ms)
        more |= await self._by_age(kept, now_ms)
        more |= await self._events_by_age(kept, now_ms)
        for project_id, of in kept.items():
            for kind in (*BY_ID, Kind.EVENTS):
                more |= await self._by_size(project_id, kind, of[kind], now_ms)
            more |= await self._values(project_id, of[Kind.VALUES], now_ms)
            more |= await self._fires(project_id, of[Kind.SCHEDULE_FIRES], now_ms)
        return more

    async def _own(self, now_ms: int) -> bool:
        more = False
        for name, age_ms in OWN_MS.items():
            before_ms, left = now_ms - age_ms, TURN_ROWS
            more_of_it = await self._database.read(store.is_forgettable, name, before_ms, now_ms)
            while more_of_it and left > 0:
                rows = self._step_rows
                done = await self._step(store.forget, name, before_ms, now_ms, rows)
                self.deleted[name] += done
                left -= done
                more_of_it = done == rows
            more |= more_of_it
        return more

    async def _by_age(self, kept: Mapping[str, Mapping[Kind, Keep]], now_ms: int) -> bool:
        asks = [
            self._ask(kind, (project_id,), now_ms - age_ms)
            for project_id, of in kept.items()
            for kind in BY_ID
            if (age_ms := of[kind].age_ms) is not None
        ]
        more = False
        for at in range(0, len(asks), ASKS):
            some = asks[at : at + ASKS]
            found = await self._database.read(store.due, some, STEP_ROWS_MAX)
            for ask, ids in zip(some, found, strict=True):
                more |= await self._take(ask, now_ms, ids)
        return more

    async def _events_by_age(self, kept: Mapping[str, Mapping[Kind, Keep]], now_ms: int) -> bool:
        """Go through events once for each age: they stand in the order of time, not of projects."""
        groups: dict[int | None, list[str]] = {}
        for project_id, of in kept.items():
            groups.setdefault(of[Kind.EVENTS].age_ms, []).append(project_id)
        usual = max(groups, key=lambda age_ms: len(groups[age_ms]), default=None)
        more = False
        for age_ms, project_ids in groups.items():
            if age_ms is None:
                continue
            others = [one for age, ids in groups.items() if age != age_ms for one in ids]
            named = others if age_ms == usual else project_ids
            ask = self._ask(Kind.EVENTS, tuple(named), now_ms - age_ms, all_but=age_ms == usual)
            (ids,) = await self._database.read(store.due, [ask], STEP_ROWS_MAX)
            more |= await self._take(ask, now_ms, ids)
        return more

    async def _by_size(self, project_id: str, kind: Kind, keep: Keep, now_ms: int) -> bool:
        key = (kind, project_id, keep)
        if not keep.is_by_size or self._rests(key):
            return False
        began_s = self._monotonic()
        cut = self._cuts.pop(key, None)
        if not isinstance(cut, str):
            cut = await cut_id(self._database, project_id, kind, keep)
        if cut is not None:
            ask = Ask(kind=kind.value, project_ids=(project_id,), until_id=cut)
            (ids,) = await self._database.read(store.due, [ask], STEP_ROWS_MAX)
            if await self._take(ask, now_ms, ids):
                self._cuts[key] = cut
                return True
        self._rest(key, began_s)
        return False

    async def _values(self, project_id: str, keep: Keep, now_ms: int) -> bool:
        key = (Kind.VALUES, project_id, keep)
        if (keep.age_ms is None and not keep.is_by_size) or self._rests(key):
            return False
        began_s = self._monotonic()
        cut = self._cuts.pop(key, None)
        if not isinstance(cut, int):
            cut = await cut_ms(self._database, project_id, keep)
        ends = [cut, None if keep.age_ms is None else now_ms - keep.age_ms]
        before_ms = max((end for end in ends if end is not None), default=None)
        since: values_store.Timeline | None = ("", "") if before_ms is not None else None
        left = TURN_ROWS
        while since is not None and before_ms is not None and left > 0:
            found, since = await self._database.read(
                values_store.old_values, project_id, before_ms, since, STEP_ROWS_MAX
            )
            if found:
                await self._remove_values(found)
                left -= len(found)
        if since is not None and before_ms is not None:
            self._cuts[key] = before_ms
            return True
        self._rest(key, began_s)
        return False

    async def _remove_values(self, keys: Sequence[values_store.Key]) -> None:
        commit = Commit()
        for key in keys:
            commit.remove(values, key)
        began_s = self._monotonic()
        await self._journal.commit(commit)
        self.deleted[Kind.VALUES.value] += len(keys)
        await asyncio.sleep(max(PAUSE_S, self._monotonic() - began_s))

    async def _fires(self, project_id: str, keep: Keep, now_ms: int) -> bool:
        if keep.age_ms is None:
            return False
        before_ms = now_ms - keep.age_ms
        ids = await self._database.read(
            store.schedules_with_old_fires, project_id, before_ms, SCHEDULES
        )
        if not ids:
            return False
        done = await self._step(store.delete_fires, ids, before_ms, self._step_rows)
        self.deleted[Kind.SCHEDULE_FIRES.value] += done
        return done > 0

    # What goes, and steps.

    def _ask(
        self, kind: Kind, project_ids: tuple[str, ...], before_ms: int, *, all_but: bool = False
    ) -> Ask:
        walked = self._walked.get((kind, project_ids, all_but))
        again_s = LOOK_AGAIN_EVENTS_S if kind is Kind.EVENTS else LOOK_AGAIN_S
        if walked is not None and self._monotonic() - walked.began_s > again_s:
            del self._walked[kind, project_ids, all_but]
            walked = None
        return Ask(
            kind=kind.value,
            project_ids=project_ids,
            all_but=all_but,
            until_id=store.id_at(kind.value, before_ms),
            before_ms=before_ms,
            after_id="" if walked is None else walked.until_id,
        )

    async def _take(self, ask: Ask, now_ms: int, ids: Sequence[str]) -> bool:
        """Delete what goes, beginning with `ids`; return whether the turn was over before that."""
        needed = frozenset[str]()
        if ask.kind == Kind.EVENTS and ids:
            found = await self._database.read(store.events_needed, ask.until_id)
            if found is None:
                _log.warning("retention_of_events_waits", needed=store.HELD_EVENTS_MAX)
                return False
            needed = found
        left = TURN_ROWS
        while True:
            going = [one for one in ids if one not in needed]
            while going:
                some, going = going[: self._step_rows], going[self._step_rows :]
                done = await self._step(store.delete_rows, ask, some, now_ms)
                self.deleted[ask.kind] += done
            if len(ids) < STEP_ROWS_MAX:
                self._has_walked(ask, ask.until_id)
                return False
            left -= len(ids)
            ask = replace(ask, after_id=ids[-1])
            if left <= 0:
                self._has_walked(ask, ask.after_id)
                return True
            (ids,) = await self._database.read(store.due, [ask], STEP_ROWS_MAX)

    def _has_walked(self, ask: Ask, until_id: str) -> None:
        """Remember that nothing goes by age up to that id: what is there is kept, or needed."""
        if ask.before_ms is None:
            return
        key = (Kind(ask.kind), ask.project_ids, ask.all_but)
        known = self._walked.get(key)
        began_s = self._monotonic() if known is None else known.began_s
        self._walked[key] = _Walked(until_id, began_s)

    async def _step(self, change: Callable[..., int], *args: Any) -> int:
        """Run one change in the writer's transaction, then leave the writer to the others."""

        def timed(connection: Connection) -> tuple[int, float]:
            began_s = time.perf_counter()
            return change(connection, *args), time.perf_counter() - began_s

        done, took_s = await self._journal.run(timed)
        if took_s > STEP_S:
            self._step_rows = max(STEP_ROWS_MIN, self._step_rows // 2)
        elif took_s < STEP_S / 2:
            self._step_rows = min(STEP_ROWS_MAX, self._step_rows * 2)
        await asyncio.sleep(max(PAUSE_S, SHARE * took_s))
        return done

    # Counting is not free: what took long is not counted again soon.

    def _rests(self, key: _Sized) -> bool:
        return self._monotonic() < self._rest_s.get(key, 0.0)

    def _rest(self, key: _Sized, began_s: float) -> None:
        now_s = self._monotonic()
        if len(self._rest_s) > RESTS_MAX:  # of rules that are gone
            self._rest_s = {one: at_s for one, at_s in self._rest_s.items() if at_s > now_s}
        self._rest_s[key] = now_s + max(PASS_S / 2, COUNT_SHARE * (now_s - began_s))
