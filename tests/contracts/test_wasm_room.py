"""How many runs of WebAssembly that wait are let into one cell: each has a thread there."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import asyncio
import base64
from typing import Any

import pytest
from wasmtime import wat2wasm

from engine import dispatch
from engine.runner import THREAD_BYTES
from engine.wiring import Platform
from runtimes.contract import MIB, FromCell
from tests.standins.control_plane import http, new_project, platform  # noqa: F401 - fixtures
from tests.standins.paper_cells import Ended, Stage, said, starts

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODULE = """
(module (memory (export "memory") 1)
  (func (export "alloc") (param i32) (result i32) (i32.const 0))
  (func (export "handle") (param i32 i32) (result i64) (i64.const 0)))
"""
WAITS = b'[3,%d,1,65536,0],\n[1,%d,1,"timer",{"ms":60000}]'
ENDS = b'[0,%d,"ok",null]'
GUESTS_BYTES = 8 * MIB


@pytest.fixture(scope="module")
def database_settings() -> dict[str, str]:
    """SQLite alone: nothing here depends on the database."""
    return {}


@pytest.mark.parametrize(
    ("guests_bytes", "instances_max", "fit"),
    [(GUESTS_BYTES, 300, GUESTS_BYTES // (THREAD_BYTES + 65_536)), (GUESTS_BYTES * 99, 7, 7)],
    ids=["memory", "addresses"],
)
async def test_runs_that_wait_count_with_their_threads(
    platform: Platform,
    http: Any,
    monkeypatch: pytest.MonkeyPatch,
    guests_bytes: int,
    instances_max: int,
    fit: int,
) -> None:
    """What would not fit in waits in the engine, where it costs nothing, until one has ended."""
    owner = await new_project(platform, http, f"waits {fit}")
    binary = base64.b64encode(bytes(wat2wasm(MODULE))).decode()
    body = {"name": "waits", "wasm": binary, "handlers": ["job"]}
    await owner.develop.ok("POST", "/v1/functions", body)
    monkeypatch.setattr(platform.dispatcher, "guests_bytes", guests_bytes)
    monkeypatch.setattr(dispatch, "INSTANCES_MAX", instances_max)
    stage = Stage(platform, owner)
    with stage.plays():
        cell, _ = await stage.begin(stage.run("waits"))
        more = [Ended(stage.run("waits")) for _ in range(19)]
        for ended in more:
            platform.dispatcher.submit(ended.run)
        inside: list[int] = []
        answered = 0
        while answered < len(stage.batches):
            answered = len(stage.batches)
            begun = starts(stage.batches[-1])
            inside += begun
            cell.say(FromCell.OUTPUT, 1, said(*(WAITS % (run, run) for run in begun)))
            await asyncio.sleep(0.01)

        assert len(inside) == fit

        platform.dispatcher.cancel(more[0].run)
        async with asyncio.timeout(5):
            while answered == len(stage.batches):
                await asyncio.sleep(0.01)
        begun = starts(stage.batches[-1])
        assert len(begun) == 1
