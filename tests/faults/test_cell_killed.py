"""Cells and their zygote are killed from outside, again and again, and nobody notices.

The kernel's OOM killer and an operator's `kill -9` look like this: SIGKILL, at any moment.
"""

# ruff: noqa: T201 - seeds and the counts of what was injected are printed

import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from random import Random

import psutil
import pytest

from examples.slack_stand_in import SlackStandIn
from tests.conftest import Engine
from tests.faults.audit import audit, database, restarted, settled, unfinished
from tests.faults.load import Load, furnish

CELL_KILLS = 12
BETWEEN_KILLS_S = (0.05, 0.35)
SPIN = "export function job(params) { for (let i = 0; i < params.loops; i++); }"
BLOCKING_LOOPS = 600_000_000  # half a second, in which the batch gathers
BATCH_LOOPS = 3_000_000
BATCH_RUNS = 200
SETTLED_RUNS = 30  # by then the engine knows how short they are, and sends many at once
CELLS_MAX = 16  # warm ones, the project's, a quarantined one and some of suspects


def zygote_of(engine: Engine) -> psutil.Process:
    children = psutil.Process(engine.process.pid).children()
    alive = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
    (zygote,) = [child for child in alive if "sandbox.zygote_unsafe" in child.cmdline()]
    return zygote


def kill_cells(engine: Engine, load: Load, rng: Random, kills: int) -> int:
    """Kill so many cells, whichever they are, and return how many there were to choose from."""
    zygote = zygote_of(engine)
    seen: set[int] = set()
    killed = 0
    while killed < kills:
        cells = zygote.children()
        seen.update(cell.pid for cell in cells)
        with suppress(IndexError, psutil.NoSuchProcess):
            rng.choice(cells).kill()
            killed += 1
        load.rest(rng.uniform(*BETWEEN_KILLS_S))
    return len(seen)


@pytest.mark.slow
def test_killed_cells_cost_nothing(own_engine: Callable[..., Engine]) -> None:
    """Cells die under every kind of request: all are answered, all effects happen once."""
    seed = time.time_ns()
    with SlackStandIn() as slack:
        engine = own_engine()
        load = Load(furnish(engine, slack.webhook_url))

        with load.running(write=2, thing=1, gateway=1, job=1, call=2):
            cells_seen = kill_cells(engine, load, Random(seed), CELL_KILLS)
        settled(engine)

        print(f"seed {seed}: {CELL_KILLS} of {cells_seen} cells killed; {load.promises.statuses}")
        assert load.promises.bodies == []
        assert not load.promises.maybe_writes | load.promises.maybe_runs
        received = audit(engine, load.promises, slack)
        assert set(received.values()) == {1}


@pytest.mark.slow
def test_killed_zygote_costs_nothing(own_engine: Callable[..., Engine]) -> None:
    """The process that makes the cells dies, and all cells with it: another one takes over."""
    with SlackStandIn() as slack:
        engine = own_engine()
        load = Load(furnish(engine, slack.webhook_url))

        with load.running(write=2, gateway=1, job=1, call=2):
            load.rest(0.4)
            first = zygote_of(engine)
            first.kill()
            load.rest(0.6)
            second = zygote_of(engine)
            load.rest(0.4)
        settled(engine)

        print(f"1 zygote killed; {load.promises.statuses}")
        assert first.pid != second.pid
        assert load.promises.bodies == []
        received = audit(engine, load.promises, slack)
        assert set(received.values()) == {1}


@pytest.mark.slow
def test_cell_killed_with_a_full_batch(own_engine: Callable[..., Engine]) -> None:
    """All runs of the batch on the thread run again, not each in a cell of its own at once."""
    with SlackStandIn() as slack:
        engine = own_engine()
        furnish(engine, slack.webhook_url)
        engine.deploy("spin", SPIN)

        _queue(engine, 1, BLOCKING_LOOPS)
        _queue(engine, BATCH_RUNS, BATCH_LOOPS)
        done = {"function": "spin", "status": "succeeded"}
        engine.until(lambda: len(engine.executions(**done)) > SETTLED_RUNS)
        _project_cell(engine).kill()
        cells_max = 0
        with database(engine.data_dir) as connection:
            while unfinished(connection):
                cells_max = max(cells_max, len(zygote_of(engine).children()))

        ended = engine.executions(function="spin")
        with database(engine.data_dir) as connection:
            again = restarted(connection)
        print(f"1 cell killed: {again} runs began again, in at most {cells_max} cells at once")
        assert Counter(run["status"] for run in ended) == {"succeeded": BATCH_RUNS + 1}
        assert again > 1
        assert cells_max <= CELLS_MAX


def _queue(engine: Engine, runs: int, loops: int) -> None:
    path, headers = "/v1/functions/spin/invoke", {"Prefer": "respond-async"}
    for _ in range(runs):
        engine.ok("POST", path, {"loops": loops}, headers=headers)


def _project_cell(engine: Engine) -> psutil.Process:
    """Return the cell that works: the others are blank and have used next to no CPU."""
    return max(zygote_of(engine).children(), key=lambda cell: cell.cpu_times().user)
