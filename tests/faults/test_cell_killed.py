"""Cells and their zygote are killed from outside, again and again, and nobody notices.

The kernel's OOM killer and an operator's `kill -9` look like this: SIGKILL, at any moment.
"""

import time
from collections.abc import Callable
from random import Random

import psutil
import pytest

from examples.slack_stand_in import SlackStandIn
from tests.conftest import Engine
from tests.faults.audit import audit, settled
from tests.faults.load import Load, Site, furnish

CELL_KILLS = 14
BETWEEN_KILLS_S = (0.05, 0.35)
QUEUED_JOBS = 300


def zygote_of(engine: Engine) -> psutil.Process:
    children = psutil.Process(engine.process.pid).children()
    (zygote,) = [child for child in children if "sandbox.zygote_unsafe" in child.cmdline()]
    return zygote


def kill_cells(engine: Engine, load: Load, rng: Random, kills: int) -> int:
    """Kill so many cells, whichever they are, and return how many there were to choose from."""
    seen: set[int] = set()
    killed = 0
    while killed < kills:
        cells = zygote_of(engine).children()
        seen.update(cell.pid for cell in cells)
        if cells:
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
    """A cell dies with hundreds of runs in it: they run again, and not each in a cell of its own."""
    with SlackStandIn() as slack:
        engine = own_engine()
        site = furnish(engine, slack.webhook_url)
        spin = "export function job(params) { const t = Date.now(); for (let i = 0; i < 3e5; i++); }"
        engine.deploy("spin", spin)
        zygote = zygote_of(engine)

        at_once = _queue_and_kill(site, zygote)
        engine.settled()

        print(f"{QUEUED_JOBS} runs queued, their cell killed; at most {at_once} cells then")
        ended = engine.executions(function="spin")
        assert [run["status"] for run in ended] == ["succeeded"] * QUEUED_JOBS
        assert at_once <= 24


def _queue_and_kill(site: Site, zygote: psutil.Process) -> int:
    engine = site.engine
    path, headers = "/v1/functions/spin/invoke", {"Prefer": "respond-async"}
    for _ in range(QUEUED_JOBS):
        engine.ok("POST", path, {}, headers=headers)
    return 0
