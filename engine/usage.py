"""What projects have used of the CPU, and which of them have used it up.

Path:   dispatch.end -> `add`; once a second: cells' own CPU, journal -> store.usage -> `exceeded`
Never:  waits for the database on the way of a run; lets a cell claim less than the kernel counted.

A node adds what it knows; the table has the sum of all nodes. A budget can be overshot by a second
of CPU of each other node; and by what has begun, which ends, and is owed in the next minutes.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from math import ceil, inf
from typing import Final, Protocol

import structlog

from engine.allowances import Effective
from engine.clock import Clock
from engine.errors import EngineError, QuotaExceeded
from engine.store import usage as store
from engine.store.journal import Journal

EVERY_S: Final = 1.0
MINUTE_MS: Final = 60_000
KEPT_MINUTES: Final = 60  # afterwards only the month knows of them
OWED_MAX: Final = 60  # budgets of a minute that a project can owe
STEP_NS: Final = 10_000_000  # of CPU that runs have used between two judgements of a project
SWEEP_EVERY: Final = 600  # looks at the table
IDLE_NS: Final = 5_000_000  # that a cell without work uses between two looks, for its watchdog
IDLE_NS_MAX: Final = 50_000_000  # the kernel counts in steps of 10 ms
NS_PER_US: Final = 1_000
NS_PER_S: Final = 1_000_000_000
PER_MINUTE: Final = "cpu_seconds_per_minute"
PER_MONTH: Final = "cpu_seconds_per_month"
BUDGETS: Final = (PER_MINUTE, PER_MONTH)
_log = structlog.get_logger()


class Cell(Protocol):
    """Port: a cell that a project has. Adapter: `sandbox.supervisor.Cell`."""

    def cpu_ns(self) -> int | None:
        """Return the CPU time of its process as the kernel counts it; None: it is gone."""
        ...


@dataclass(slots=True)
class _Account:
    """One project on this node: what its cells have used, what its runs say, and what is charged.

    Charged is whichever is more: a run is known at its end, a cell at each look, and what a cell
    did for a run must not be charged twice.
    """

    cells_ns: int = 0
    runs_ns: int = 0
    runs_count: int = 0
    stored_ns: int = 0  # of it the table has so much
    stored_count: int = 0
    stop_ns: float = inf  # what `runs_ns` may come to before budgets are looked at again

    @property
    def charged_ns(self) -> int:
        return max(self.cells_ns, self.runs_ns)

    @property
    def fresh_ns(self) -> int:
        """Return what the table does not have yet."""
        return self.charged_ns - self.stored_ns


@dataclass(slots=True)
class _Meter:
    """One cell of a project, and its process's clock at the last look."""

    project_id: str
    read_ns: int
    idle_ns: int = 0  # what its own watch may use, unused so far: not the project's

    def read(self, cpu_ns: int, idle_ns: int) -> int:
        """Return what the cell has used for its project since it was last read."""
        self.idle_ns = min(IDLE_NS_MAX, self.idle_ns + idle_ns)
        used_ns = max(0, cpu_ns - self.read_ns)
        self.read_ns += used_ns
        own_ns = min(used_ns, self.idle_ns)
        self.idle_ns -= own_ns
        return used_ns - own_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Exceeded:
    """A budget that is used up."""

    name: str
    value: float  # CPU seconds
    used: float
    until_ms: int  # when the next period begins

    def error(self, now_ms: int) -> QuotaExceeded:
        return QuotaExceeded(
            self.name,
            self.value,
            round(self.used, 3),
            retry_after_s=max(1, ceil((self.until_ms - now_ms) / 1000)),
            why="the project's CPU time is used up",
        )


class Usage:
    """The CPU time of all projects. `start`, then `close`."""

    def __init__(
        self,
        journal: Journal,
        clock: Clock,
        allowances: Callable[[str], Effective],
        *,
        lifted: Callable[[], None],
        refused: Counter[str],
    ) -> None:
        """`lifted` is called when projects may run again; `refused` counts by limit."""
        self._journal = journal
        self._clock = clock
        self._allowances = allowances
        self._lifted = lifted
        self._refused = refused
        self._meters: dict[Cell, _Meter] = {}
        self._accounts: dict[str, _Account] = {}
        self._forgotten_ns = 0  # of projects that have done nothing for a while, or are deleted
        self._watched: set[str] | None = None  # projects with budgets; None: all, before we know
        self._totals: store.Totals = {}
        self._minute: int | None = None  # up to which it is known what projects owe
        self._minutes_budgets: dict[str, float] | None = None  # as of the last look, seconds
        self._looking = asyncio.Lock()  # two looks at once would store the same twice
        self._task: asyncio.Task[None] | None = None
        self.exceeded: dict[str, Exceeded] = {}  # by project; others look here, and change nothing

    async def start(self) -> None:
        """Learn who has used what, before anything runs."""
        await self.look()
        self._task = asyncio.create_task(self._look_forever(), name="usage")

    async def close(self) -> None:
        """Stop, and store what is not stored yet."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        with suppress(EngineError):  # the database is away: a second of usage is lost
            await self.look()

    def add(self, project_id: str, cpu_ns: int) -> None:
        """Count an attempt that has ended."""
        account = self._accounts.get(project_id) or self._new_account(project_id)
        account.runs_ns += cpu_ns
        account.runs_count += 1
        if account.runs_ns >= account.stop_ns:
            for cell, meter in self._meters.items():  # a run may last longer than a look
                if meter.project_id == project_id:
                    self._charge(meter, cell.cpu_ns() or 0, idle_ns=0)
            left_ns = self._left_ns(project_id) - account.fresh_ns
            account.stop_ns = account.runs_ns + max(STEP_NS, left_ns)
            found = self._judged(project_id, self._clock())
            if found is not None:
                self.exceeded[project_id] = found

    def spent_ns(self) -> int:
        """Return what all projects have used on this node since it started."""
        accounts = self._accounts.values()
        return self._forgotten_ns + sum(account.charged_ns for account in accounts)

    def cell_begun(self, project_id: str, cell: Cell) -> None:
        """Watch a cell's own CPU time, for what its runs do not say of themselves."""
        self._meters[cell] = _Meter(project_id, cell.cpu_ns() or 0)

    def cell_ended(self, cell: Cell | None, cpu_ns: int = 0) -> None:
        """Count what a cell has used to its end; `cpu_ns`: in its life, if that is known."""
        meter = None if cell is None else self._meters.pop(cell, None)
        if cell is not None and meter is not None:
            self._charge(meter, max(cpu_ns, cell.cpu_ns() or 0))

    def check(self, project_id: str) -> None:
        """Refuse new work of a project that has used its CPU time up.

        Raises:
            QuotaExceeded: names the budget; says when there is a new one.
        """
        found = self.exceeded.get(project_id)
        if found is not None:
            self._refused[found.name] += 1
            raise found.error(self._clock())

    async def look(self) -> None:
        """Store what was used since the last look, and read what all nodes have.

        Raises:
            EngineError: the database did not take it; it goes with the next look.
        """
        async with self._looking:
            await self._look()

    async def _look(self) -> None:
        clocks = await asyncio.to_thread(read_clocks, tuple(self._meters))
        for cell, cpu_ns in clocks.items():
            meter = self._meters.get(cell)
            if meter is not None:  # else it has ended meanwhile, and is counted
                self._charge(meter, cpu_ns or 0)
        now_ms = self._clock()
        await self._carry_over(now_ms // MINUTE_MS)
        periods = (minute_of(now_ms), month_of(now_ms))
        fresh = {
            project_id: (account.charged_ns, account.runs_count)
            for project_id, account in sorted(self._accounts.items())
            if account.fresh_ns >= NS_PER_US or account.runs_count != account.stored_count
        }
        deltas = []
        for project_id, (charged_ns, runs_count) in fresh.items():
            account = self._accounts[project_id]
            cpu_us = (charged_ns - account.stored_ns) // NS_PER_US
            runs = runs_count - account.stored_count
            deltas += [(project_id, period, cpu_us, runs) for period in periods]
        self._watch(fresh)
        watched = None if self._watched is None else sorted(self._watched)
        self._totals = await self._journal.run(
            store.add, deltas, (*periods, owed_of(now_ms)), watched=watched
        )
        for project_id, (charged_ns, runs_count) in fresh.items():
            account = self._accounts[project_id]
            account.stored_ns, account.stored_count = charged_ns, runs_count
        if self._watched is None:
            self._watched = set()
            self._watch(project_id for project_id, _ in self._totals)
        for project_id, account in self._accounts.items():
            account.stop_ns = account.runs_ns + self._left_ns(project_id)
        self._minutes_budgets = {
            project_id: seconds
            for project_id in self._watched
            if (seconds := self._allowances(project_id).cpu_seconds_per_minute) > 0
        }
        self._judge(now_ms)

    async def _carry_over(self, minute: int) -> None:
        """In a new minute: find what projects overspent in those before, by the budgets of then.

        All nodes come to the same; the first one's figure counts.
        """
        before = minute - 1 if self._minute is None else self._minute
        if before >= minute:
            return
        past = range(max(before, minute - KEPT_MINUTES), minute)
        periods = [*(f"minute:{one}" for one in past), owed_in(before)]
        found: store.Totals = await self._journal.run(store.add, (), periods, watched=None)
        owed = []
        for project_id in sorted({project_id for project_id, _ in found}):
            budget_us = self._minutes_budget(project_id) * 1_000_000
            if not budget_us:
                continue
            owed_us: float = found.get((project_id, owed_in(before)), (0, 0))[0]
            for one in past:
                used_us = found.get((project_id, f"minute:{one}"), (0, 0))[0]
                owed_us = max(0, owed_us + used_us - budget_us)
            owed_us = min(owed_us, OWED_MAX * budget_us)
            if owed_us:
                owed.append((project_id, owed_in(minute), int(owed_us), 0))
        if owed:
            await self._journal.run(store.carry, owed)
        self._minute = minute

    def _minutes_budget(self, project_id: str) -> float:
        """Return by which budget a minute is judged that has passed; 0: there was, or is, none."""
        now: float = self._allowances(project_id).cpu_seconds_per_minute
        if self._minutes_budgets is None or not now:
            return now
        before = self._minutes_budgets.get(project_id)
        return 0 if before is None else max(now, before)

    async def sweep(self) -> None:
        """Forget minutes that have long passed, and projects that have done nothing since.

        Raises:
            EngineError: the database did not take it.
        """
        oldest = minute_of(self._clock() - KEPT_MINUTES * MINUTE_MS)
        await self._journal.run(store.forget, oldest)
        self._forget_idle()

    def _forget_idle(self) -> None:
        """Forget projects without a cell of which the table has everything: they may be deleted."""
        working = {meter.project_id for meter in self._meters.values()}
        for project_id, account in tuple(self._accounts.items()):
            is_stored = account.runs_count == account.stored_count and account.fresh_ns < NS_PER_US
            if is_stored and project_id not in working:
                self._forgotten_ns += account.charged_ns
                del self._accounts[project_id]
        if self._watched is not None:
            counted = {project_id for project_id, _ in self._totals}
            self._watched &= counted | self._accounts.keys()

    def _watch(self, project_ids: Iterable[str]) -> None:
        if self._watched is not None:
            self._watched.update(one for one in project_ids if _budgets(self._allowances(one)))

    def _new_account(self, project_id: str) -> _Account:
        account = self._accounts[project_id] = _Account(stop_ns=self._left_ns(project_id))
        return account

    def _charge(self, meter: _Meter, cpu_ns: int, idle_ns: int = IDLE_NS) -> None:
        """Count what the kernel has counted of a cell.

        That is its runs; and its loads, what it does between runs, and what native code hides.
        """
        account = self._accounts.get(meter.project_id) or self._new_account(meter.project_id)
        account.cells_ns += meter.read(cpu_ns, idle_ns)

    def _used_ns(self, project_id: str, name: str, now_ms: int) -> int:
        """Return what all nodes have used of a budget, with what is owed to it."""
        minutes = (minute_of(now_ms), owed_of(now_ms))
        periods = minutes if name == PER_MINUTE else (month_of(now_ms),)
        found = (self._totals.get((project_id, period), (0, 0))[0] for period in periods)
        return sum(found) * NS_PER_US

    def _left_ns(self, project_id: str) -> float:
        budgets = _budgets(self._allowances(project_id))
        if not budgets:
            return inf
        now_ms = self._clock()
        return min(
            seconds * NS_PER_S - self._used_ns(project_id, name, now_ms)
            for name, seconds in budgets
        )

    def _judge(self, now_ms: int) -> None:
        """Find out whose budgets are used up."""
        found: dict[str, Exceeded] = {}
        for project_id in {*(self._watched or ()), *self._accounts}:
            one = self._judged(project_id, now_ms)
            if one is not None:
                found[project_id] = one
        is_lifted = not self.exceeded.keys() <= found.keys()
        self.exceeded.clear()
        self.exceeded.update(found)
        if is_lifted:
            self._lifted()

    def _judged(self, project_id: str, now_ms: int) -> Exceeded | None:
        """Return the budget that one project has used up; of two, that which ends later."""
        account = self._accounts.get(project_id)
        here_ns = 0 if account is None else account.fresh_ns
        found = None
        for name, seconds in _budgets(self._allowances(project_id)):
            used_ns = self._used_ns(project_id, name, now_ms) + here_ns
            if used_ns >= seconds * NS_PER_S:
                found = Exceeded(
                    name=name,
                    value=seconds,
                    used=used_ns / NS_PER_S,
                    until_ms=_end_ms(name, now_ms, used_ns / (seconds * NS_PER_S)),
                )
        return found

    async def _look_forever(self) -> None:
        for looks_count in count():
            # A new minute is a new budget: whoever waits for it is let go at its beginning.
            to_minute_ms = MINUTE_MS - self._clock() % MINUTE_MS
            await asyncio.sleep(min(EVERY_S, (to_minute_ms + 1) / 1000))
            try:
                await self.look()
                if looks_count % SWEEP_EVERY == 0:
                    await self.sweep()
            except Exception as error:  # noqa: BLE001 - without it no budget is used up, or lifted
                _log.warning("usage_not_stored", error=str(error))


def read_clocks(cells: Iterable[Cell]) -> dict[Cell, int | None]:
    """Return what `cpu_ns` says of each cell: a read of /proc each, so for a thread."""
    return {cell: cell.cpu_ns() for cell in cells}


def minute_of(now_ms: int) -> str:
    return f"minute:{now_ms // MINUTE_MS}"


def month_of(now_ms: int) -> str:
    return month_period(f"{_utc(now_ms):%Y-%m}")


def month_period(month: str) -> str:
    return f"month:{month}"


def owed_of(now_ms: int) -> str:
    """Return under which name it is stored what is owed to this minute's budget."""
    return owed_in(now_ms // MINUTE_MS)


def owed_in(minute: int) -> str:
    return f"minute:{minute}:owed"  # forgotten with its minute


def _end_ms(name: str, now_ms: int, budgets: float) -> int:
    """Return when there is a budget again of which `budgets` times as much is used."""
    if name == PER_MINUTE:
        return (now_ms // MINUTE_MS + min(int(budgets), OWED_MAX + 1)) * MINUTE_MS
    now = _utc(now_ms)
    next_month = (now.replace(day=1) + timedelta(days=31)).replace(day=1)
    return int(next_month.replace(hour=0, minute=0, second=0, microsecond=0).timestamp() * 1000)


def _budgets(allowed: Effective) -> list[tuple[str, float]]:
    """Return the project's budgets in CPU seconds; the month's last, for it is the longer one."""
    return [(name, seconds) for name in BUDGETS if (seconds := getattr(allowed, name)) > 0]


def _utc(now_ms: int) -> datetime:
    return datetime.fromtimestamp(now_ms / 1000, UTC)
