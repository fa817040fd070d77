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
from sandbox import supervisor
from sandbox.frames import frame
from sandbox.supervisor import JAVASCRIPT, Cell, Sandbox
from tests.standins.control_plane import http, new_project, platform  # noqa: F401 - fixtures
from tests.standins.paper_cells import KILLED, Stage, said

pytestmark = pytest.mark.asyncio(loop_scope="module")

WORDS = 400  # more than is decoded at once
TALK = [b'[2,1,[["info",1,"%d"]],0]' % number for number in range(WORDS)]
DONE = b'[0,1,"ok",null]'
LONG = said(*TALK, DONE)
STOP = b'{"run":1,"outcome":"cpu_exceeded","limit":{"name":"cpu_ms","value":1,"used":2},"log":[]}'


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
    async with asyncio.timeout(5):
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
    async with asyncio.timeout(5):
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

    assert (run.outcome, run.losses) == (Outcome.SUCCEEDED, 0)
    assert [text for _level, _at, text in run.log][:100] == [str(number) for number in range(100)]


async def test_a_cell_is_not_read_while_it_waits_for_its_turn(stage: Stage) -> None:
    """What it says next stays in its socket: the engine keeps one output of it at most."""
    cell, ended = await stage.begin()
    paused = []

    cell.say(FromCell.OUTPUT, 1, LONG)
    async with asyncio.timeout(5):
        while not ended.count:
            paused.append(cell.is_paused)
            await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert all(paused)
    assert not cell.is_paused


async def test_nothing_is_written_to_a_cell_whose_last_word_is_not_read(stage: Stage) -> None:
    """It may have ended; the write would lose that word, and who is to blame."""
    cell, ended = await stage.begin()

    cell.say(FromCell.OUTPUT, 1, said(*TALK, b'[1,1,1,"timer",{"ms":1}]', b'[1,1,2,"none",{}]'))
    cell.say(FromCell.STOPPED, 1, STOP)
    cell.hang_up()
    async with asyncio.timeout(5):
        while not cell.cell._lost:
            await asyncio.sleep(0)
    cell.cell.ended(KILLED)

    assert (await ended.once()).outcome is Outcome.CPU_EXCEEDED


async def test_what_is_held_back_is_written_in_the_end(stage: Stage) -> None:
    """A call that is answered while the output is read."""
    cell, ended = await stage.begin()

    cell.say(FromCell.OUTPUT, 1, said(*TALK, b'[1,1,1,"none",{}]'))
    await stage.until(batches_count=2)
    cell.say(FromCell.OUTPUT, 1, said(DONE))

    assert (await ended.once()).outcome is Outcome.SUCCEEDED
    assert stage.batches[1].startswith(b"[[1,1,1,")


async def test_frames_that_come_together_are_taken_in_turns(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However short each of them is."""
    monkeypatch.setattr(supervisor, "TURN_NS", -1)
    cell, ended = await stage.begin()

    cell.bytes_out(frame(FromCell.FAULT, 0, b"x") + frame(FromCell.OUTPUT, 1, said(DONE)))

    assert ended.count == 0
    assert (await ended.once()).outcome is Outcome.SUCCEEDED


async def test_frames_are_taken_one_after_the_other(stage: Stage) -> None:
    """Also those that the transport had read already; this one nobody waits for."""
    cell, ended = await stage.begin()

    cell.say(FromCell.OUTPUT, 1, LONG)
    cell.cell.data_received(frame(FromCell.OUTPUT, 1, LONG))
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

    cell.say(FromCell.OUTPUT, 1, said(*TALK, b'[0,1,"ok",nul]'))
    run = await ended.once()

    assert cell.is_dead
    assert (run.outcome, run.losses) == (Outcome.SUCCEEDED, 1)
