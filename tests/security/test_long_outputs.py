"""A cell that says much at once: the engine takes it bit by bit, and serves the others between."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from engine import runner
from engine.wiring import Platform
from runtimes.contract import FromCell, Outcome
from sandbox.supervisor import JAVASCRIPT, Cell, Sandbox
from tests.standins.control_plane import http, new_project, platform  # noqa: F401 - fixtures
from tests.standins.paper_cells import KILLED, Stage, said

pytestmark = pytest.mark.asyncio(loop_scope="module")

WORDS = 100
WORD = b'[2,1,[["info",1,"x"]],0]'
DONE = b'[0,1,"ok",null]'
LONG = said(*[WORD] * WORDS, DONE)


@pytest.fixture(scope="module")
def database_settings() -> dict[str, str]:
    """SQLite alone: it is about what comes before the database."""
    return {}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(platform: Platform, http: Any) -> AsyncIterator[Stage]:
    owner = await new_project(platform, http, "long")
    await owner.function("echo", "function main(params, callback) { callback(null, params); }")
    made = Stage(platform, owner)
    with made.plays():
        yield made


@pytest.fixture(autouse=True)
def _a_message_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "TURN_NS", -1)


async def test_others_have_their_turns_between(stage: Stage) -> None:
    """The loop comes round after each turn, and not only at the end."""
    cell, ended = await stage.begin()
    turns_count = 0

    cell.say(FromCell.OUTPUT, 1, LONG)
    while not ended.count:
        await asyncio.sleep(0)
        turns_count += 1

    assert turns_count >= WORDS
    assert (await ended.once()).outcome is Outcome.SUCCEEDED


async def test_cells_take_turns() -> None:
    """However many say much: the loop comes round after a turn of one of them."""
    taken: list[Cell] = []

    class Talker(Cell):
        def take_turn(self) -> None:
            taken.append(self)
            if taken.count(self) < 3:
                sandbox.wait_for_turn(self)

    sandbox = Sandbox(warm_count=0, cell_memory_mb=1, strict=False)
    cells = [Talker(sandbox, JAVASCRIPT) for _ in range(3)]

    for cell in cells:
        sandbox.wait_for_turn(cell)
    counts = []
    while len(taken) < 9:
        await asyncio.sleep(0)
        counts.append(len(taken))

    assert counts == list(range(1, 10))
    assert taken == cells * 3


async def test_the_end_of_the_cell_comes_after_all_that_it_said(stage: Stage) -> None:
    """A run that has said that it is done is not run again because its cell ends then."""
    cell, ended = await stage.begin()

    cell.say(FromCell.OUTPUT, 1, LONG)
    cell.die(KILLED)
    run = await ended.once()

    assert (run.outcome, run.losses, len(run.log)) == (Outcome.SUCCEEDED, 0, WORDS)


async def test_frames_are_taken_one_after_the_other(stage: Stage) -> None:
    """Also those that the transport had read already; this one nobody waits for."""
    cell, ended = await stage.begin()

    cell.say(FromCell.OUTPUT, 1, LONG)
    cell.say(FromCell.OUTPUT, 1, LONG)
    run = await ended.once()
    await asyncio.sleep(0)

    assert (run.outcome, run.losses) == (Outcome.SUCCEEDED, 0)
    assert cell.is_dead


async def test_what_a_killed_cell_had_still_to_say_is_not_heard(stage: Stage) -> None:
    """Neither what waits for its turn, nor the log of a run that begins again elsewhere."""
    cell, ended = await stage.begin()

    cell.say(FromCell.OUTPUT, 1, LONG)
    cell.cell.kill()
    run = await ended.once()

    assert (run.outcome, run.losses, run.log) == (Outcome.SUCCEEDED, 1, [])


async def test_a_lie_at_the_end_ends_the_cell(stage: Stage) -> None:
    """It is found in a later turn, where nobody reads the channel."""
    cell, ended = await stage.begin()

    cell.say(FromCell.OUTPUT, 1, said(*[WORD] * WORDS, b'[0,1,"ok",nul]'))
    run = await ended.once()

    assert cell.is_dead
    assert (run.outcome, run.losses) == (Outcome.SUCCEEDED, 1)
