"""Which cells are ended for working although nobody has asked them to; CPU times are given here."""

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from engine.idle_cells import IDLE_CPU_NS_MAX, IdleCells


@dataclass(eq=False)
class Cell:
    """As the supervisor's: a process with a CPU clock, which can be killed."""

    pid: int = 1
    used_ns: int | None = 0
    killed: bool = False

    def cpu_ns(self) -> int | None:
        return self.used_ns

    def kill(self) -> None:
        self.killed = True


@dataclass
class House:
    """As the dispatcher's: says whether there is a run, and when there last was work."""

    idle: bool = True
    used_ns: int = 0


@pytest.fixture
def cell() -> Cell:
    return Cell()


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
def idle_cells(cell: Cell, house: House) -> IdleCells:
    houses: Any = {cell: house}
    return IdleCells(lambda: houses)


def used(idle_cells: IdleCells, cell: Cell, *times_ns: int) -> None:
    for time_ns in times_ns:
        cell.used_ns = time_ns
        asyncio.run(idle_cells.look())


def test_a_cell_that_works_unasked_is_ended(idle_cells: IdleCells, cell: Cell) -> None:
    """However slowly: what it uses from look to look is added up."""
    used(idle_cells, cell, 7, 7 + IDLE_CPU_NS_MAX // 2, 8 + IDLE_CPU_NS_MAX)

    assert cell.killed


def test_a_little_work_between_runs_is_allowed(idle_cells: IdleCells, cell: Cell) -> None:
    """An honest cell makes its next isolate while it waits."""
    used(idle_cells, cell, 7, 7 + IDLE_CPU_NS_MAX, 7 + IDLE_CPU_NS_MAX)

    assert not cell.killed


def test_what_was_asked_for_does_not_count(idle_cells: IdleCells, cell: Cell, house: House) -> None:
    """A cell that was given work since the last look has a new account."""
    used(idle_cells, cell, 0)
    house.used_ns = 1
    used(idle_cells, cell, 5 * IDLE_CPU_NS_MAX)

    assert not cell.killed


def test_a_cell_with_a_run_may_work(idle_cells: IdleCells, cell: Cell, house: House) -> None:
    """Its runs have limits of their own."""
    house.idle = False

    used(idle_cells, cell, 0, 9 * IDLE_CPU_NS_MAX)

    assert not cell.killed


def test_a_cell_that_is_gone_is_passed_over(idle_cells: IdleCells, cell: Cell) -> None:
    """It has no clock any more."""
    asyncio.run(idle_cells.look())
    cell.used_ns = None

    asyncio.run(idle_cells.look())

    assert not cell.killed
