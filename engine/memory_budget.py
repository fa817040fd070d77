"""Keeps what all cells of this node hold below a budget: idle ones go, then the largest.

Path:   wiring -> `MemoryBudget.start` -> every second: /proc -> Dispatcher's houses, the pool;
        every 100 ms: /proc -> whether one cell holds more than a cell may
Never:  ends a cell that works while an idle one could go; loses a run: those of a cell that is
        ended start again, as after any death of a cell.
"""

import asyncio
import os
import resource
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import structlog

from engine.api.platform import Samples
from engine.dispatch import Dispatcher, House
from engine.settings import Settings
from runtimes.contract import MIB
from sandbox.supervisor import Cell, Sandbox

LOOK_S: Final = 1.0
PART: Final = 0.7  # of the machine's memory, or of the container's: the rest is the engine's
CALM: Final = 0.9  # of the budget: below it cells are kept warm again
TIGHT: Final = 1.1  # of the budget: from here on no cell is started, and working ones may go
GLANCE_S: Final = 0.1  # native code can take some 300 MB in that time
# Of one cell, times CLOUDCODE_CELL_MEMORY_MB. RLIMIT_DATA holds an honest runtime to one; it does
# not count what was filled and then made read-only, as native code may do without end.
CELL_MAX: Final = 2
PAGE_BYTES: Final = resource.getpagesize()
READY_BYTES: Final = 64 * MIB  # what a cell has when it is blank, at the most
_CGROUPS: Final = Path("/sys/fs/cgroup")
_log = structlog.get_logger()


def memory_here(own_cgroup: str, root: Path = _CGROUPS) -> int:
    """Return how much memory this process may have: the machine's, or less in a container.

    Args:
        own_cgroup: the content of /proc/self/cgroup.
        root: where the cgroups (version 2) are mounted.
    """
    least = psutil.virtual_memory().total
    path = next((line[3:] for line in own_cgroup.splitlines() if line.startswith("0::")), "/")
    folder = root / path.strip("/")
    for one in (folder, *folder.parents):
        with suppress(OSError, ValueError):
            least = min(least, int((one / "memory.max").read_text()))
        if one == root:
            break
    return least


def budget_bytes(setting_mb: int) -> int:
    """Return the budget; `setting_mb` 0: PART of what there is."""
    if setting_mb:
        return setting_mb * MIB
    with suppress(OSError):
        return int(memory_here(Path("/proc/self/cgroup").read_text()) * PART)
    return int(psutil.virtual_memory().total * PART)


def least_mb(settings: Settings) -> int:
    """Return which budget has room for the cells that are kept warm and one that works, MB.

    Below it a cell that keeps to its own limits can be ended for the budget, again and again.
    """
    return (settings.warm_cells + 1) * READY_BYTES // MIB + settings.cell_memory_mb


def warn_if_small(settings: Settings) -> None:
    """Tell the log of a budget that is too small."""
    budget_mb, needed_mb = budget_bytes(settings.memory_budget_mb) // MIB, least_mb(settings)
    if budget_mb < needed_mb:
        _log.warning("memory_budget_small", budget_mb=budget_mb, needed_mb=needed_mb)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What one cell holds."""

    bytes: int
    is_warm: bool = False  # blank, in the pool
    idle_since_ns: int | None = None  # None: it works


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be done: which cells end (by their place), and whether no more may start."""

    over: tuple[int, ...] = ()  # each holds more than a cell may
    reclaimed: tuple[int, ...] = ()  # warm ones, then idle ones
    largest: int | None = None  # works, and goes although it does
    is_over: bool = False
    is_tight: bool = False


def plan(cells: Sequence[Holding], budget: int, cell_max: int) -> Plan:
    """Decide which cells go: pure."""
    over = tuple(at for at, cell in enumerate(cells) if cell.bytes > cell_max)
    held = sum(cell.bytes for at, cell in enumerate(cells) if at not in over)
    if held <= budget:
        return Plan(over=over)
    warm = [at for at, cell in enumerate(cells) if cell.is_warm]
    idle = sorted(
        (cell.idle_since_ns, at) for at, cell in enumerate(cells) if cell.idle_since_ns is not None
    )
    reclaimed = []
    for at in (*warm, *(at for _, at in idle)):
        if held <= budget:
            break
        if at not in over:
            reclaimed.append(at)
            held -= cells[at].bytes
    is_tight = held > budget * TIGHT
    largest = None
    if is_tight:
        left = [at for at in range(len(cells)) if at not in over and at not in reclaimed]
        largest = max(left, key=lambda at: cells[at].bytes)
    return Plan(
        over=over, reclaimed=tuple(reclaimed), largest=largest, is_over=True, is_tight=is_tight
    )


class MemoryBudget:
    """Looks every second, and ends what has to go."""

    def __init__(
        self, dispatcher: Dispatcher, sandbox: Sandbox, *, budget: int, cell_memory_mb: int
    ) -> None:
        self._dispatcher = dispatcher
        self._sandbox = sandbox
        self._budget = budget
        self._cell_max = CELL_MAX * cell_memory_mb * MIB + READY_BYTES
        self._task: asyncio.Task[None] | None = None
        self._held = 0
        self._no_warm = False
        self._states: Counter[str] = Counter()
        self._reclaimed: Counter[str] = Counter()

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def cells(self) -> Samples:
        return {(state,): float(self._states[state]) for state in ("warm", "idle", "busy")}

    def held(self) -> Samples:
        return {(): float(self._held)}

    def reclaimed(self) -> Samples:
        return {(reason,): float(self._reclaimed[reason]) for reason in ("budget", "cell", "tight")}

    async def _run(self) -> None:
        glances = round(LOOK_S / GLANCE_S)
        while True:
            try:
                for _ in range(glances):
                    await asyncio.sleep(GLANCE_S)
                    self._glance()
                await self._look()
            except Exception as error:  # noqa: BLE001 - without it cells would fill the machine
                _log.warning("memory_not_read", error=str(error))

    def _glance(self) -> None:
        """End each cell that holds more than a cell may: it can take the node's in a second."""
        given = _private(self._sandbox.zygote_pid)
        warm = self._sandbox.warm_cells()  # they have not run anything yet
        for cell in self._sandbox.cells():
            if cell not in warm and (held := _private(cell.pid) - given) > self._cell_max:
                self._end(cell, Holding(bytes=held), "cell")
                cell.kill()

    async def _look(self) -> None:
        cells = self._sandbox.cells()
        pids = [cell.pid for cell in cells]
        shared = self._sandbox.zygote_pid
        sizes = await asyncio.to_thread(_sizes, pids, shared)
        houses = self._dispatcher.houses()  # as they are now, not before the thread
        warm = self._sandbox.warm_cells()
        found = [_holding(cell, sizes[cell.pid], houses, warm) for cell in cells]
        self._held = sum(cell.bytes for cell in found)
        self._states = Counter(map(_state, found))
        todo = plan(found, self._budget, self._cell_max)
        # Not at the budget itself: cells would be started and ended in turn.
        is_calm = self._held <= self._budget * CALM
        self._no_warm = todo.is_over or (self._no_warm and not is_calm)
        self._sandbox.limit_cells(no_warm=self._no_warm, none=todo.is_tight)
        for at in todo.over:
            self._end(cells[at], found[at], "cell")
            cells[at].kill()
        for at in todo.reclaimed:
            self._end(cells[at], found[at], "budget")
            house = houses.get(cells[at])
            if house is None:
                cells[at].kill()
            else:
                house.leave()
        if todo.largest is not None:
            self._end(cells[todo.largest], found[todo.largest], "tight")
            cells[todo.largest].kill()

    def _end(self, cell: Cell, holding: Holding, reason: str) -> None:
        self._reclaimed[reason] += 1
        log = _log.info if reason == "budget" else _log.warning
        log("cell_reclaimed", pid=cell.pid, reason=reason, bytes=holding.bytes, held=self._held)


def _holding(cell: Cell, size: int, houses: dict[Cell, House], warm: frozenset[Cell]) -> Holding:
    if cell in warm:
        return Holding(bytes=size, is_warm=True)
    house = houses.get(cell)
    is_idle = house is not None and house.idle and not house.alone
    return Holding(
        bytes=size, idle_since_ns=house.used_ns if house is not None and is_idle else None
    )


def _state(cell: Holding) -> str:
    if cell.is_warm:
        return "warm"
    return "busy" if cell.idle_since_ns is None else "idle"


def _sizes(pids: Iterable[int], zygote: int) -> dict[int, int]:
    """Return what each process holds, bytes: all that is no file, less what the zygote gave it."""
    given = _not_files(zygote)
    return {pid: max(0, _not_files(pid) - given) for pid in pids}


def _not_files(pid: int) -> int:
    """Return the bytes of a process that no file is behind, page tables included; 0: gone."""
    kib = 0
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(("RssAnon:", "RssShmem:", "VmPTE:", "VmSwap:")):
                kib += int(line.split()[1])
    return kib * 1024


def _private(pid: int) -> int:
    """Return the bytes in memory of a process that are its own and no file's; 0: gone.

    In 15 us: no Path, and the one file of /proc that is made without a look at all mappings.
    """
    try:
        descriptor = os.open(f"/proc/{pid}/statm", os.O_RDONLY)
    except OSError:
        return 0
    try:
        _, resident, shared, *_ = os.read(descriptor, 256).split()
    except (OSError, ValueError):  # it ends just now
        return 0
    finally:
        os.close(descriptor)
    return (int(resident) - int(shared)) * PAGE_BYTES
