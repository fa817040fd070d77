"""Ends a cell that works although nobody has asked it for anything.

Path:   wiring -> `IdleCells.start` -> every second: the kernel's CPU clock of each idle cell
Never:  believes what a cell says of its CPU; touches a cell that has a run.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import structlog

from engine.dispatch import House
from engine.usage import read_clocks
from sandbox.supervisor import Cell

LOOK_S: Final = 1.0
# An honest cell that is idle makes its next isolate, which takes some 20 ms, and then waits.
IDLE_CPU_NS_MAX: Final = 500_000_000
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Seen:
    used_ns: int
    cpu_ns: int


class IdleCells:
    """Looks every second."""

    def __init__(self, houses: Callable[[], Mapping[Cell, House]]) -> None:
        self._houses = houses
        self._seen: dict[Cell, _Seen] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def look(self) -> None:
        """Compare what each idle cell has used with what it had when it was first seen idle."""
        idle = [cell for cell, house in self._houses().items() if house.idle]
        clocks = await asyncio.to_thread(read_clocks, idle)
        before, self._seen = self._seen, {}
        for cell, house in self._houses().items():  # as they are now, not before the thread
            cpu_ns = clocks.get(cell)
            if cpu_ns is None or not house.idle:
                continue
            seen = before.get(cell)
            if seen is None or seen.used_ns != house.used_ns:
                seen = _Seen(house.used_ns, cpu_ns)
            self._seen[cell] = seen
            if cpu_ns - seen.cpu_ns > IDLE_CPU_NS_MAX:
                _log.warning("cell_worked_unasked", pid=cell.pid, cpu_ns=cpu_ns - seen.cpu_ns)
                cell.kill()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except Exception as error:  # noqa: BLE001 - else a hidden loop could run for good
                _log.warning("idle_cells_not_read", error=str(error))
