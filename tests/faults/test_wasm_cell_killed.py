"""Cells with WebAssembly in them are killed from outside, and nobody notices.

As test_cell_killed, but the functions are modules: a run that waits there has a thread and an
instance of its own, and all of it is gone at once.
"""

# ruff: noqa: T201 - seeds and the counts of what was injected are printed

import base64
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest

from examples.slack_stand_in import SlackStandIn
from tests.conftest import Engine
from tests.faults.audit import audit, database, restarted, settled
from tests.faults.load import PRODUCT, Load, Site
from tests.standins.wasm_toolchains import ROOT, c_module

CELL_KILLS = 12
BETWEEN_KILLS_S = (0.1, 0.35)
KINDS = {  # of a function: flags of the compiler, options of the upload
    "core": (["-mexec-model=reactor"], {}),
    "reused": (["-mexec-model=reactor"], {"reuse": True}),
    "command": (["-DCOMMAND"], {}),
}


@pytest.mark.slow
@pytest.mark.parametrize(("seen", "note"), [("reused", "command"), ("command", "core")])
def test_killed_cells_cost_nothing(own_engine: Callable[..., Engine], seen: str, note: str) -> None:
    """Cells die in the middle of runs: each event is stored once, each effect happens once."""
    seed = time.time_ns()
    with SlackStandIn() as slack:
        engine = own_engine()
        load = Load(furnish(engine, slack.webhook_url, seen, note))

        with load.running(write=2, thing=1, gateway=1, job=1):
            load.rest(0.3)
            kill_busiest(engine, load, Random(seed))
        settled(engine)

        with database(engine.data_dir) as connection:
            again = restarted(connection)
        print(f"seed {seed}: {CELL_KILLS} cells killed, {again} runs began again")
        print(load.promises.statuses)
        assert load.promises.bodies == []
        assert not load.promises.maybe_writes | load.promises.maybe_runs
        assert len(load.promises.writes) > 50
        assert again >= CELL_KILLS // 2
        received = audit(engine, load.promises, slack)
        assert set(received.values()) == {1}


def furnish(engine: Engine, webhook_url: str, seen: str, note: str) -> Site:
    """Have on the engine what load.py counts on, with modules as its functions."""
    credentials = {"webhook_url": webhook_url}
    engine.ok("PUT", "/v1/connections/SLACK", {"kind": "slack", "credentials": credentials})
    for name, kind, handler in (("seen", seen, "afterStore"), ("note", note, "job")):
        fields = upload(kind) | {"name": name, "handlers": [handler]}
        engine.ok("POST", "/v1/functions", fields)
    devices = [engine.device(PRODUCT, f"device-{at}") for at in range(4)]
    trigger = {"function": "seen", "product": PRODUCT, "on": "write", "phase": "after"}
    engine.ok("POST", "/v1/triggers", trigger | {"keys": ["item"]})
    return Site(engine, devices)


def upload(kind: str) -> dict[str, Any]:
    flags, options = KINDS[kind]
    source = Path(__file__).parent / "wasm_guests" / "keep.c"
    wasm = c_module(source, f"-I{ROOT / 'examples' / 'wasm' / 'c'}", *flags)
    return {"wasm": base64.b64encode(wasm).decode(), **options}


def kill_busiest(engine: Engine, load: Load, rng: Random) -> None:
    """Kill CELL_KILLS times the cell that worked most since the last kill."""
    zygote = zygote_of(engine)
    before: dict[int, float] = {}
    killed = 0
    while killed < CELL_KILLS:
        worked: dict[psutil.Process, float] = {}
        for cell in zygote.children():
            with suppress(psutil.NoSuchProcess):
                user_s = cell.cpu_times().user
                worked[cell] = user_s - before.get(cell.pid, user_s)
                before[cell.pid] = user_s
        with suppress(psutil.NoSuchProcess):
            if max(worked.values(), default=0) > 0:
                max(worked, key=lambda cell: worked[cell]).kill()
                killed += 1
        load.rest(rng.uniform(*BETWEEN_KILLS_S))


def zygote_of(engine: Engine) -> psutil.Process:
    children = psutil.Process(engine.process.pid).children()
    (zygote,) = [child for child in children if "sandbox.zygote_unsafe" in child.cmdline()]
    return zygote
