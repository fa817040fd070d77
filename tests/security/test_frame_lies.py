"""Single lies of a cell, each with what must come of it. Many more: `test_frames_fuzz.py`."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import asyncio
import itertools
import signal
import struct
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from engine.dispatch import LOADS_AT_ONCE
from engine.messages import MESSAGES_PER_RUN
from engine.run import Run
from engine.runner import ASKED_BYTES_MAX, HELD_BYTES_MAX
from engine.wiring import Platform
from runtimes.contract import FRAME_BYTES_MAX, FULL_CODE, MIB, CellKind, FromCell, Outcome, ToCell
from sandbox.frames import frame
from sandbox.supervisor import Death
from sandbox.unread import CELL_BYTES_MAX, NODE_BYTES_MAX
from tests.standins.control_plane import (  # noqa: F401 - fixtures
    Project,
    http,
    new_project,
    platform,
)
from tests.standins.paper_cells import KILLED, Ended, PaperCell, PaperSandbox, Stage, honest, said

pytestmark = pytest.mark.asyncio(loop_scope="module")

ECHO = "function main(params, callback) { callback(null, params); }"
DONE = b'[0,1,"ok",null]'
HEAD = struct.Struct(">IcI")


@pytest.fixture(scope="module")
def database_settings() -> dict[str, str]:
    """SQLite alone: these lies do not come as far as the database."""
    return {}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(platform: Platform, http: Any) -> AsyncIterator[Stage]:
    owner = await new_project(platform, http, "lies")
    await owner.function("echo", ECHO)
    made = Stage(platform, owner)
    with made.plays():
        yield made


SIGNS = b'[2,1,[["info",1,"x"]],0]'
DEEP = b"[" * 201 + b"]" * 201
STOP = b'{"run":1,"outcome":"cpu_exceeded","limit":{"name":"cpu_ms","value":1,"used":2},"log":[]}'
KILLING = {
    "ready again": [(FromCell.READY, 0, b"[]")],
    "two faults": [(FromCell.FAULT, 0, b"x"), (FromCell.FAULT, 0, b"x")],
    "a program that nobody asked for": [(FromCell.BUILT, 1, b"{}")],
    "loaded again": [(FromCell.LOADED, 1, b"{}")],
    "refused after it was loaded": [(FromCell.REFUSED, 1, b'{"name":"E","message":"m"}')],
    "an isolate that it does not have": [(FromCell.OUTPUT, 2, said(DONE))],
    "an output without its head": [(FromCell.OUTPUT, 1, b"[]")],
    "a kind that there is not": [("?", 1, b"")],
    "a word after its last": [(FromCell.STOPPED, 1, STOP), (FromCell.FAULT, 0, b"x")],
    "a stop as none is": [(FromCell.STOPPED, 1, STOP.replace(b"cpu_exceeded", b"skipped"))],
    "a limit that there is not": [(FromCell.STOPPED, 1, STOP.replace(b"cpu_ms", b"moon"))],
    "a negative figure": [(FromCell.STOPPED, 1, STOP.replace(b"2}", b"-2}"))],
    "not JSON": [(FromCell.OUTPUT, 1, said(b'[0,1,"ok",nul]'))],
    "not UTF-8": [(FromCell.OUTPUT, 1, said(b'[0,1,"ok","\xff"]'))],
    "half a character": [(FromCell.OUTPUT, 1, said(b'[0,1,"ok","\\ud800"]'))],
    "a number without end": [(FromCell.OUTPUT, 1, said(b'[0,1,"ok",1e999]'))],
    "a result too deep": [(FromCell.OUTPUT, 1, said(b'[0,1,"ok",%b]' % DEEP))],
    "a run of a negative number": [(FromCell.OUTPUT, 1, said(b'[0,-1,"ok",null]'))],
    "a call that is not the next": [(FromCell.OUTPUT, 1, said(b'[1,1,2,"timer",{"ms":1}]'))],
    "a call twice": [(FromCell.OUTPUT, 1, said(*[b'[1,1,1,"timer",{"ms":1}]'] * 2))],
    "more messages than a run has": [(FromCell.OUTPUT, 1, said(*[SIGNS] * (MESSAGES_PER_RUN * 3)))],
    "a log line of a megabyte": [
        (FromCell.OUTPUT, 1, said(b'[2,1,[["info",1,"%b"]],0]' % (b"x" * MIB)))
    ],
    "a result of five megabytes": [
        (FromCell.OUTPUT, 1, said(b'[0,1,"ok","%b"]' % (b"x" * 5 * MIB)))
    ],
}  # fmt: skip


@pytest.mark.parametrize("frames", KILLING.values(), ids=KILLING.keys())
async def test_a_lie_ends_the_cell_and_the_run_begins_again(
    stage: Stage, frames: list[tuple[str, int, bytes]]
) -> None:
    """In a cell of its own, where it succeeds; or it was the run that the cell named first."""
    cell, ended = await stage.begin()

    for kind, isolate, payload in frames:
        cell.say(kind, isolate, payload)
    run = await ended.once()

    assert cell.is_dead
    if frames[0][2] == STOP:
        assert run.outcome is Outcome.CPU_EXCEEDED
    else:
        assert (run.outcome, run.losses) == (Outcome.SUCCEEDED, 1)


@pytest.mark.parametrize("kind", "rbleoxk")
async def test_a_cell_that_has_nothing_to_do_must_not_speak(stage: Stage, kind: str) -> None:
    """One word unasked, and it is gone; but for one report of a fault."""
    cell, ended = await stage.begin()
    cell.say(FromCell.OUTPUT, 1, said(DONE))
    await ended.once()

    cell.say(kind, 1, said())
    await asyncio.sleep(0)

    assert cell.is_dead or kind == FromCell.FAULT


NO_MEMORY = {
    "it says so": Death(signal=0, exit_code=FULL_CODE, peak_bytes=0),
    "V8 aborts": Death(signal=signal.SIGTRAP, exit_code=0, peak_bytes=0),
}


@pytest.mark.parametrize("death", NO_MEMORY.values(), ids=NO_MEMORY.keys())
@pytest.mark.parametrize("when", [ToCell.LOAD, ToCell.BATCH])
async def test_a_cell_without_memory_fails_nobody_who_did_not_have_it_alone(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, when: ToCell, death: Death
) -> None:
    """Others may have filled it: what was at work, or to be loaded, runs in a cell of its own."""
    run, full_count = await run_in_full_cells(stage, monkeypatch, when, death, most=1)

    assert run.outcome is Outcome.SUCCEEDED
    assert run.losses == (when is ToCell.BATCH)
    assert full_count == 1


@pytest.mark.parametrize("death", NO_MEMORY.values(), ids=NO_MEMORY.keys())
@pytest.mark.parametrize("when", [ToCell.LOAD, ToCell.BATCH])
async def test_who_has_a_cell_alone_and_fills_it_is_to_blame(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, when: ToCell, death: Death
) -> None:
    """Two cells are enough to know it."""
    run, full_count = await run_in_full_cells(stage, monkeypatch, when, death, most=9)

    if when is ToCell.BATCH:
        assert run.outcome is Outcome.MEMORY_EXCEEDED
        assert run.limit is not None
        assert run.limit.name == "memory_mb"
    else:
        assert run.outcome is Outcome.FAILED
        assert run.error is not None
        assert run.error.message == "the cell ran out of memory while the version was loaded"
    assert full_count == 2


async def run_in_full_cells(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, when: ToCell, death: Death, *, most: int
) -> tuple[Run, int]:
    """Have cells die, each at its first word of this kind; return the run, and how many did."""
    full_count = 0

    def play(cell: PaperCell, kind: str, isolate: int, payload: bytes) -> None:
        nonlocal full_count
        if kind == when and full_count < most:
            full_count += 1
            cell.die(death)
        else:
            honest(cell, kind, isolate, payload)

    stage.sandbox.end_all()
    monkeypatch.setattr(stage.sandbox, "heard", play)
    ended = Ended(stage.run())
    stage.platform.dispatcher.submit(ended.run)
    return await ended.once(), full_count


async def test_a_warm_cell_must_not_speak() -> None:
    """It has no listener, and no code but ours."""
    killed = PaperSandbox(asyncio.get_running_loop().call_soon, honest)
    await killed.acquire(CellKind.read("javascript"))
    (cell,) = killed.cells

    cell.say(FromCell.OUTPUT, 1, said())
    await asyncio.sleep(0)

    assert cell.is_dead


async def test_a_frame_too_large_is_refused_by_its_head(stage: Stage) -> None:
    """Nothing of it is waited for: nine bytes are enough."""
    cell, ended = await stage.begin()

    cell.bytes_out(HEAD.pack(FRAME_BYTES_MAX, b"o", 1))
    await ended.once()

    assert cell.is_dead


async def test_a_frame_in_tiny_pieces_is_a_frame(stage: Stage) -> None:
    """An honest cell on a slow machine is not punished."""
    cell, ended = await stage.begin()

    for byte in frame(FromCell.OUTPUT, 1, said(DONE)):
        cell.bytes_out(bytes([byte]))
    run = await ended.once()

    assert (run.outcome, run.losses) == (Outcome.SUCCEEDED, 0)


async def test_half_a_frame_ends_with_the_runs_wall_time(stage: Stage) -> None:
    """The cell is ended like one that never answers, and the run is to blame."""
    cell, ended = await stage.begin()

    cell.bytes_out(frame(FromCell.OUTPUT, 1, said(DONE))[:-1])
    ended.run.started_ns -= 60_000_000_000  # its wall time is over
    run = await ended.once()

    assert cell.is_dead
    assert run.outcome is Outcome.TIMED_OUT


async def test_a_cell_that_stays_after_its_last_word_is_ended(stage: Stage) -> None:
    """A second later, and its run ends as it said."""
    cell, ended = await stage.begin()

    cell.say(FromCell.STOPPED, 1, STOP)
    run = await ended.once()

    assert cell.is_dead
    assert run.outcome is Outcome.CPU_EXCEEDED


async def test_a_cell_that_does_not_read_is_ended(stage: Stage) -> None:
    """What waits for it in the engine is bounded."""
    cell, ended = await stage.begin()
    cell.unread_bytes = CELL_BYTES_MAX + 1

    cell.say(FromCell.OUTPUT, 1, said(b'[1,1,1,"timer",{"ms":1}]'))  # its answer is written
    run = await ended.once()

    assert cell.is_dead
    assert run.outcome is Outcome.SUCCEEDED  # in the next cell


async def test_cells_that_do_not_read_have_a_total(stage: Stage) -> None:
    """None has too much, all have: the fullest goes, and the others stay."""
    cell, ended = await stage.begin()
    others = [PaperCell(stage.sandbox, cell.cell.kind, honest) for _ in range(3)]
    stage.sandbox.cells += others
    for part, other in zip((0.2, 0.4, 0.3), others, strict=True):
        other.unread_bytes = int(NODE_BYTES_MAX * part)
        other.cell.send(ToCell.UNLOAD, 1)
    cell.unread_bytes = NODE_BYTES_MAX // 5

    cell.say(FromCell.OUTPUT, 1, said(b'[1,1,1,"timer",{"ms":1}]'))  # its answer is written
    await stage.until(2)
    cell.unread_bytes = 0
    cell.say(FromCell.OUTPUT, 1, said(DONE))
    await ended.once()

    assert [other.is_dead for other in others] == [False, True, False]
    assert not cell.is_dead


async def test_figures_are_no_larger_than_they_can_be(stage: Stage) -> None:
    """CPU time is no longer than the time there was, memory what a cell can have."""
    cell, ended = await stage.begin()
    before_ns = time.monotonic_ns()

    cell.say(FromCell.OUTPUT, 1, said(DONE, cpu_ns=2**64 - 1, peak_kib=2**32 - 1))
    run = await ended.once()

    assert run.cpu_ns <= time.monotonic_ns() - before_ns + 1_000_000_000
    assert run.peak_bytes <= 4096 * MIB


async def test_log_lines_are_of_the_runs_own_time_and_of_a_known_level(stage: Stage) -> None:
    """A year 200,000 would be in every reader's way."""
    cell, ended = await stage.begin()

    cell.say(
        FromCell.OUTPUT, 1, said(b'[2,1,[["shout",9007199254740992,"a"],["warn",0,"b"]],0]', DONE)
    )
    run = await ended.once()

    assert [(level, text) for level, _, text in run.log] == [("info", "a"), ("warn", "b")]
    assert {at_ms for _, at_ms, _ in run.log} == {run.clock_ms}


async def test_arguments_that_wait_are_bounded(stage: Stage) -> None:
    """A run's calls that nobody has answered hold so much memory of the engine, and no more."""
    cell, ended = await stage.begin()
    pad = b"x" * 4 * MIB
    numbers = itertools.count(1)

    for batches in (2, 3, 4):
        late = [b'[1,1,%d,"timer",{"ms":5e4,"pad":"%b"}]' % (next(numbers), pad) for _ in "1234"]
        soon = b'[1,1,%d,"timer",{"ms":1}]' % next(numbers)
        cell.say(FromCell.OUTPUT, 1, said(*late, soon))
        assert ended.run.held_bytes <= HELD_BYTES_MAX
        await stage.until(batches)
    cell.say(FromCell.OUTPUT, 1, said(DONE))
    run = await ended.once()

    told = b"".join(stage.batches[1:])
    assert told.count(b"RangeError") > 0
    assert run.outcome is Outcome.SUCCEEDED


async def test_what_a_run_asks_is_bounded_in_all(stage: Stage) -> None:
    """Reading it takes the engine's own time, which is everybody's."""
    cell, ended = await stage.begin()
    ended.run.asked_bytes = ASKED_BYTES_MAX - 1_000

    cell.say(FromCell.OUTPUT, 1, said(b'[1,1,1,"kv.put",{"key":"%b"}]' % (b"x" * 1_000)))
    run = await ended.once()

    assert run.outcome is Outcome.HOST_CALLS_EXCEEDED
    assert run.limit is not None
    assert (run.limit.name, run.limit.value) == ("host_call_bytes", ASKED_BYTES_MAX)


async def test_a_run_with_two_answers_in_a_batch_begins_again_once(stage: Stage) -> None:
    """When the cell dies under them, the run is one suspect and not two."""
    cell, ended = await stage.begin()
    puts = [b'[1,1,%d,"kv.put",{"key":"k","value":1}]' % number for number in (1, 2)]
    cell.say(FromCell.OUTPUT, 1, said(*puts))
    await stage.until(2)
    answers = [message[:3] for message in msgspec.json.decode(stage.batches[1])]

    cell.die(KILLED)
    run = await ended.once()

    assert answers == [[1, 1, 1], [1, 1, 2]]
    assert (run.outcome, run.losses, run.effects) == (Outcome.SUCCEEDED, 1, [])


async def test_a_cell_is_sent_a_few_programs_at_a_time(stage: Stage) -> None:
    """The others wait in the engine, where all cells share them; not in the cell's channel."""
    source, count = ECHO, 3 * LOADS_AT_ONCE
    for number in range(count):
        body = {"name": f"many-{number}", "source": source}
        await stage.owner.develop.ok("POST", "/v1/functions", body)
    stage.sandbox.end_all()
    loads: list[int] = []
    heard = stage.sandbox.heard
    stage.sandbox.heard = lambda _cell, kind, isolate, _payload: loads.append(isolate)
    runs = [Ended(stage.run(f"many-{number}")) for number in range(count)]

    for one in runs:
        stage.platform.dispatcher.submit(one.run)
    await asyncio.sleep(0.05)
    at_once = list(loads)
    stage.sandbox.heard = honest
    (cell,) = stage.sandbox.cells
    for isolate in at_once:
        honest(cell, ToCell.LOAD, isolate, b"")
    ended = [await one.once() for one in runs]
    stage.sandbox.heard = heard

    assert len(at_once) == LOADS_AT_ONCE
    assert {run.outcome for run in ended} == {Outcome.SUCCEEDED}
