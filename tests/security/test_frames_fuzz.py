"""What a cell sends that lies, by the thousand: the engine answers each with outcomes.

The engine is a whole one, with its database; its cells are played (`standins.paper_cells`). Each
example plays one cell that says something made from valid frames, broken in their order, fields
and bytes; the cells after it are honest. Each time the same examples are tried, by number;
`FUZZ_EXAMPLES=20000 FUZZ_FIRST=1000` tries others, and a failure names its number.
"""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import asyncio
import itertools
import os
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.api.invocations import new_run
from engine.clock import wall_clock
from engine.ids import new_id
from engine.run import Run
from engine.runner import HELD_BYTES_MAX
from engine.store.kv import read_value
from engine.wiring import Platform
from runtimes.contract import COUNT_MAX, FRAME_BYTES_MAX, FromCell, Outcome, ToCell
from sandbox.frames import BadFrame, FrameReader, frame
from tests.standins.control_plane import (  # noqa: F401 - fixtures
    Project,
    http,
    new_project,
    platform,
)
from tests.standins.paper_cells import NobodyHeldBack, PaperCell, PaperSandbox, honest, output

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))
FIRST = int(os.environ.get("FUZZ_FIRST", "0"))
RUNS = 3  # in one batch
SETTLE_S = 5
KEPT_BYTES = 2 * 1024 * 1024  # of a run, when it has ended: its log, its transcript, its result
_keys = itertools.count(1)

NUMBERS = [1, 2, 3, 0, RUNS + 1, -1, 2**31, 2**53 + 1, 10**30]
DEEP = b"[" * 201 + b"]" * 201
VALUES = [
    b"null", b'{"a":[1,2]}', b"3", b'"text"', b"", b"[1,", b'"\xff"', b'"\\ud800"', b"1e999",
    b'{"a":1,"a":2}', b'"\\u0000"', DEEP, b"[" * 2_000 + b"]" * 2_000, b"-1", b"9" * 400,
    b'"' + b"x" * 1_100_000 + b'"', b'"' + b"x" * 4_200_000 + b'"',
    b"[" + b"[]," * 90_000 + b"0]",
    b'{"name":"Error","message":"m","stack":"s"}', b'{"name":1}',
    b'{"name":"' + b"n" * 9_000 + b'","message":"","stack":"","line":9007199254740993}',
    b'{"outcome":"cpu_exceeded","limit":{"name":"cpu_ms","value":1,"used":2},"error":null}',
    b'{"outcome":"memory_exceeded","limit":null,"error":null}',
    b'{"outcome":"succeeded","limit":null,"error":null}',
    b'{"outcome":"timed_out","limit":{"name":"x","value":1,"used":2},"error":null}',
    b'{"run":1,"outcome":"crashed","limit":null,"log":["info a","b",""]}',
    b'{"run":2,"outcome":"cpu_exceeded","limit":{"name":"cpu_ms","value":-1,"used":1},"log":[]}',
    b'{"run":3,"outcome":"dead_lettered","limit":null,"log":[]}',
    b'{"handlers":["main"],"log":[]}', b'[{"name":"seccomp","active":true}]',
]  # fmt: skip
STOPS = [
    b'{"run":%d,"outcome":"%b","limit":%b,"log":["info a","b",""]}' % (number, outcome, limit)
    for number in (0, 1, 2, RUNS + 1)
    for outcome in (b"crashed", b"cpu_exceeded", b"memory_exceeded", b"timed_out", b"skipped")
    for limit in (b"null", b'{"name":"cpu_ms","value":200,"used":9007199254740992}')
]
STATUSES = [b"ok", b"ok", b"ok", b"threw", b"output", b"stopped", b"maybe"]
CALLS = [
    (b"kv.put", b'{"key":"KEY","value":1}'), (b"kv.put", b'{"key":"KEY","value":1}'),
    (b"kv.get", b'{"key":"KEY"}'), (b"timer", b'{"ms":1e6}'), (b"timer", b'{"ms":1}'),
    (b"devices.write", b'{"device":"x","values":[{"key":"a","value":1}]}'),
    (b"devices.values", b'{"device":"x","key":"a"}'), (b"fetch", b'{"url":"http://x/"}'),
    (b"function.call", b'{"function":"echo"}'), (b"job.progress", b'{"value":0.5}'),
    (b"connection.send", b'{"message":{}}'), (b"kv.list", b"{}"), (b"nothing", b"{}"),
    (b"kv.put", b"[]"), (b"kv.get", b'{"key":' + DEEP + b"}"), (b'a","b', b"{}"),
    (b"timer", b'{"ms":1,"pad":"' + b"x" * 9_000_000 + b'"}'), (b"x" * 70_000, b"null"),
]  # fmt: skip
LINES = [
    b'["info",1,"text"]', b'["x",9007199254740991,"\\u0000"]', b'["",-1,""]', b'["info",1]',
     b'["warn",0,"' + b"y" * 70_000 + b'"]', b",".join([b'["",0,""]'] * 50_000),
]  # fmt: skip


def message(rng: Random) -> bytes:
    """Something that looks like a message, or not even so."""
    number = rng.choice(NUMBERS)
    match rng.choice("ddccclurb"):
        case "d":
            rest = rng.choice([b"", b",1,2,3", b",-1", b",9007199254740993,0,0"])
            return b'[0,%d,"%b",%b%b]' % (number, rng.choice(STATUSES), rng.choice(VALUES), rest)
        case "c":
            operation, arguments = rng.choice(CALLS)
            call = rng.choice([1, 1, 1, 2, 2, 3, 0, -1, 10**30])
            return b'[1,%d,%d,"%b",%b]' % (number, call, operation, arguments)
        case "l":
            lines = b",".join(rng.choices(LINES, k=rng.randrange(4)))
            return b"[2,%d,[%b],%d]" % (number, lines, rng.choice(NUMBERS))
        case "u":
            return b"[3,%d,%d,%d,%d]" % (number, *rng.choices(NUMBERS, k=3))
        case "r":
            calls = [b'[1,%d,%d,"timer",{"ms":1}]' % (number, n) for n in range(1, 1_100)]
            return b",\n".join(calls)
        case _:
            return rng.randbytes(rng.randrange(30))


HALF, MOSTLY, SELDOM, FEW = 0.5, 0.85, 0.08, 2
GOOD = {
    b"ok": [b"null", b'{"a":[1,2]}', b'"' + b"x" * 1_000_000 + b'"', DEEP[1:-1]],
    b"threw": [b'{"name":"Error","message":"m","stack":"s"}'],
    b"output": [b"1048577"],
    b"stopped": [
        b'{"outcome":"cpu_exceeded","limit":{"name":"cpu_ms","value":1,"used":2},"error":null}',
        b'{"outcome":"memory_exceeded","limit":null,"error":null}',
    ],
}


def conversation(rng: Random) -> list[bytes]:
    """What an honest cell could say to its first batch, and then perhaps something else."""
    said = []
    for number in rng.sample(range(1, RUNS + 1), RUNS):
        calls_count = rng.choice([0] * 8 + [1, 1, 2, 2, 2, 1_001])
        for call in range(1, 1 + calls_count):
            operation, arguments = rng.choice(CALLS[: 2 if calls_count > FEW else None])
            said.append(b'[1,%d,%d,"%b",%b]' % (number, call, operation, arguments))
        if rng.random() < HALF:
            said.append(b'[2,%d,[["info",1,"line"]],0]' % number)
        if rng.random() < MOSTLY:
            status = rng.choice([*GOOD, b"ok", b"ok"])
            said.append(b'[0,%d,"%b",%b]' % (number, status, rng.choice(GOOD[status])))
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        at = rng.randrange(len(said) + 1)
        change = rng.choice(["more", "more", "twice", "less", "order"])
        if change == "more" or not said:
            said.insert(at, message(rng))
        elif change == "twice":
            said.insert(at, rng.choice(said))
        elif change == "less":
            del said[min(at, len(said) - 1)]
        else:
            rng.shuffle(said)
    return said


def any_frame(rng: Random) -> bytes:
    isolate = rng.choice([1] * 20 + [0, 2, 2**32 - 1])
    if rng.random() < MOSTLY:
        text = rng.choice([b",\n"] * 20 + [b",", b"\n"]).join(conversation(rng))
        if rng.random() > SELDOM:
            text = b"[" + text + b"]"
        cpu_ns = rng.choice([0, 10**6, 2**63, 2**64 - 1])
        payload = output(text, cpu_ns=cpu_ns, peak_kib=rng.choice([0, 2**32 - 1]))
        return frame(FromCell.OUTPUT, isolate, payload)
    kind = rng.choice([*"rbleoxkkkk", "\0"])
    return frame(kind, isolate, rng.choice(STOPS if kind == "k" else VALUES))


@dataclass(frozen=True)
class Attack:
    """What one cell says, and when."""

    answers_load: bool  # properly; else what it says comes instead
    pieces: tuple[bytes, ...]


def any_attack(rng: Random) -> Attack:
    stream = bytearray(b"".join(any_frame(rng) for _ in range(rng.choice([1, 1, 1, 2, 4]))))
    for _ in range(rng.choice([0, 0, 0, 0, 0, 1, 2])):
        at = rng.randrange(min(len(stream), 400))
        stream[at : at + rng.randrange(4)] = rng.randbytes(rng.randrange(4))
    edges = [0, *sorted(rng.randrange(len(stream) + 1) for _ in range(rng.randrange(3)))]
    pieces = tuple(bytes(stream[a:b]) for a, b in itertools.pairwise([*edges, len(stream)]))
    return Attack(answers_load=rng.random() > SELDOM, pieces=pieces)


class World:
    """The engine, one function, and the cell that lies."""

    def __init__(self, platform: Platform, project: Project) -> None:
        self.platform = platform
        self.project_id = project.id
        self.loop = asyncio.get_running_loop()
        self.trouble: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _loop, context: self.trouble.append(context))
        self.sandbox = PaperSandbox(self.loop.call_soon, self._play)
        platform.dispatcher.sandbox = self.sandbox  # type: ignore[assignment]  # the port's methods
        platform.dispatcher.guard = NobodyHeldBack()
        self.attack: Attack | None = None
        self.liar: PaperCell | None = None

    def _play(self, cell: PaperCell, kind: str, isolate: int, payload: bytes) -> None:
        attack = self.attack
        if attack is None or (self.liar is not None and cell is not self.liar):
            honest(cell, kind, isolate, payload)
            return
        self.liar = cell
        if kind == ToCell.LOAD and attack.answers_load:
            honest(cell, kind, isolate, payload)
        elif kind in {ToCell.LOAD, ToCell.BATCH}:
            self.attack = None
            for piece in attack.pieces:
                cell.bytes_out(piece.replace(b"KEY", self.key))
                buffered = len(cell.cell._reader._buffer)
                assert buffered <= FRAME_BYTES_MAX + len(piece)

    def run(self) -> Run:
        function = self.platform.catalogue.function(self.project_id, "echo")
        assert function is not None
        execution_id = new_id("exe")
        version = function.choose(execution_id)
        return new_run(execution_id, version, "main", "invoke", b"null", wall_clock())

    async def suffer(self, attack: Attack) -> list[Run]:
        """Have RUNS runs in the cell that lies; return them when they have ended."""
        self.key = b"k%d" % next(_keys)
        self.attack, self.liar = attack, None
        runs = [self.run() for _ in range(RUNS)]
        ends = {run.execution_id: 0 for run in runs}
        ended = asyncio.Event()

        def on_end(run: Run) -> None:
            ends[run.execution_id] += 1
            if all(ends.values()):
                ended.set()

        for run in runs:
            run.on_end = on_end
            self.platform.dispatcher.submit(run)
        await self._said()
        if self.liar is not None:  # it says no more, as one that its runs' wall time ends
            self.sandbox.kill(self.liar.cell)
        async with asyncio.timeout(SETTLE_S):
            await ended.wait()
        self.sandbox.end_all()
        await asyncio.sleep(0)
        assert set(ends.values()) == {1}
        return runs

    async def _said(self) -> None:
        """Wait until the cell has had its say, and what it asked at once is answered."""
        for _ in range(30):
            await asyncio.sleep(0)

    async def check(self, runs: list[Run]) -> None:
        """Whatever was said: records that can be stored, and effects of what succeeded alone."""
        assert not self.trouble, self.trouble
        for run in runs:
            assert isinstance(run.outcome, Outcome)
            msgspec.json.decode(run.result)
            told = msgspec.json.encode([run.log, run.error, run.limit])
            assert len(told) + len(run.result) + run.transcript_bytes < KEPT_BYTES
            for figure in (run.cpu_ns, run.peak_bytes, run.fuel, run.log_dropped):
                assert 0 <= figure <= COUNT_MAX
            assert run.cpu_ns <= max(0, run.ended_ns - run.created_ns)
            assert run.held_bytes <= HELD_BYTES_MAX
            assert not run.unstored
        stored = await self.platform.database.read(
            read_value, self.project_id, "default", self.key.decode(), wall_clock()
        )
        wanted = any(
            run.outcome is Outcome.SUCCEEDED and any(b'"kv.put"' in one for one in run.transcript)
            for run in runs
        )
        assert wanted or stored is None


@pytest.fixture(scope="module")
def database_settings() -> dict[str, str]:
    """SQLite alone: what a cell may say is decided before the database."""
    return {}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(platform: Platform, http: Any) -> AsyncIterator[World]:
    owner = await new_project(platform, http, "fuzzed")
    source = "function main(params, callback) { callback(null, params); }"
    await owner.function("echo", source)
    real, guard = platform.dispatcher.sandbox, platform.dispatcher.guard
    made = World(platform, owner)
    yield made
    platform.dispatcher.sandbox, platform.dispatcher.guard = real, guard
    made.loop.set_exception_handler(None)


@pytest.mark.asyncio(loop_scope="module")
async def test_no_lie_of_a_cell_is_more_than_an_outcome(world: World) -> None:
    """Each run ends once, its record can be stored, and nothing raises into the engine's loop."""
    outcomes: Counter[Outcome | None] = Counter()

    for number in range(FIRST, FIRST + EXAMPLES):
        attack = any_attack(Random(number))
        try:
            runs = await world.suffer(attack)
            await world.check(runs)
        except Exception as error:
            error.add_note(f"example {number}: {str(attack)[:2_000]}")
            raise
        outcomes.update(run.outcome for run in runs)

    # Else the lies did not come far enough to be any.
    assert outcomes.keys() >= {Outcome.SUCCEEDED, Outcome.FAILED, Outcome.OUTPUT_EXCEEDED}


@given(data=st.binary(max_size=300), places=st.lists(st.integers(0, 300), max_size=6))
@settings(max_examples=300, derandomize=True, deadline=None, database=None)
def test_any_bytes_give_frames_or_a_refusal(data: bytes, places: list[int]) -> None:
    """A reader that has room for 64 bytes never holds more than that, and what came last."""
    reader = FrameReader(lambda kind, _isolate: 64 if kind in "olk" else -1)
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]

    try:
        for a, b in itertools.pairwise(edges):
            for kind, _, payload in reader.feed(data[a:b]):
                assert kind in "olk"
                assert len(payload) <= 64
            assert len(reader._buffer) <= 64 + 9
    except BadFrame:
        return
