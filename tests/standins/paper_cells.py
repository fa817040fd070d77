"""Cells that are played: real `Cell` objects over a transport of paper, in a real engine.

What a test writes in a cell's name goes the whole way that a process's bytes go, but for the
socket; so a test can say anything, and see at once what became of it.
"""

import asyncio
import itertools
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from engine.api.invocations import new_run
from engine.clock import wall_clock
from engine.ids import new_id
from engine.run import Run
from engine.wiring import Platform
from runtimes.contract import DONE, START, CellKind, FromCell, ToCell
from sandbox.frames import FrameReader, frame
from sandbox.supervisor import Cell, Death
from sandbox.unread import Unread
from tests.standins.control_plane import Project

OUTPUT_HEAD = struct.Struct(">QI")
PID_NOBODY_HAS = 2**22 + 1  # Linux ends at 2**22
Heard = Callable[["PaperCell", str, int, bytes], None]
"""Called with each frame that the engine sends to a cell: (cell, kind, isolate, payload)."""


def output(messages: bytes, *, cpu_ns: int = 0, peak_kib: int = 0) -> bytes:
    return OUTPUT_HEAD.pack(cpu_ns, peak_kib) + messages


def starts(batch: bytes) -> list[int]:
    """Return the numbers of the runs that a batch starts."""
    return [message[1] for message in msgspec.json.decode(batch) if message[0] == START]


class PaperCell:
    """The cell's end of the channel, and the engine's transport of it."""

    def __init__(self, sandbox: "PaperSandbox", kind: CellKind, heard: Heard) -> None:
        self._heard = heard
        self._reader = FrameReader()
        self.cell = Cell(sandbox, kind)  # type: ignore[arg-type]  # a Cell asks for `kill`, `unread`
        self.cell.connection_made(self)  # type: ignore[arg-type]  # ... and here `write`, `abort`
        self.cell.pid = PID_NOBODY_HAS
        self.is_dead = False
        self.is_paused = False
        self._unread: list[Callable[[], None]] = []  # what the engine will see when it reads on
        self._sandbox = sandbox
        self.unread_bytes = 0  # what the engine is told that the cell has not read
        self.say(FromCell.READY, 0, b"[]")

    def say(self, kind: str, isolate: int, payload: bytes) -> None:
        self.bytes_out(frame(kind, isolate, payload))

    def bytes_out(self, data: bytes) -> None:
        if not self.is_dead:
            self._show(lambda: self.cell.data_received(data))

    def die(self, death: Death) -> None:
        """Close the channel, and have the zygote tell; what was said before can still be read."""
        if not self.is_dead:
            self.hang_up()
            self.cell.ended(death)

    def hang_up(self) -> None:
        """Close the channel; the zygote has not told yet."""
        self.is_dead = True
        self._show(lambda: self.cell.connection_lost(None))

    def _show(self, what: Callable[[], None]) -> None:
        if self.is_paused or self._unread:
            self._unread.append(what)
        else:
            what()

    def _show_the_rest(self) -> None:
        while self._unread and not self.is_paused:
            self._unread.pop(0)()

    # asyncio.Transport, as far as a Cell uses it
    def write(self, data: bytes) -> None:
        if self.is_dead:  # a broken pipe: what was said and not read yet is lost
            self._unread = [lambda: self.cell.connection_lost(BrokenPipeError())]
            return
        for kind, isolate, payload in self._reader.feed(data):
            self._heard(self, kind, isolate, payload)

    def writelines(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self.write(piece)

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False
        self._sandbox.call_soon(self._show_the_rest)

    def get_write_buffer_size(self) -> int:
        return self.unread_bytes

    def abort(self) -> None:
        self.die(KILLED)


KILLED = Death(signal=signal.SIGKILL, exit_code=0, peak_bytes=0)


class PaperSandbox:
    """Stands for the sandbox of a dispatcher: each cell asked for is played by `heard`."""

    def __init__(self, call_soon: Callable[[Callable[[], None]], object], heard: Heard) -> None:
        self.call_soon = call_soon
        self.heard = heard
        self.cells: list[PaperCell] = []
        self.numbers = itertools.count(1)
        self.unread: Unread[Cell] = Unread()

    async def acquire(self, kind: CellKind) -> Cell:
        made = PaperCell(self, kind, self._later)
        self.cells.append(made)
        return made.cell

    def _later(self, cell: PaperCell, kind: str, isolate: int, payload: bytes) -> None:
        """No process answers within the system call that it is written to."""
        self.call_soon(lambda: cell.is_dead or self.heard(cell, kind, isolate, payload))

    def wait_for_turn(self, cell: Cell) -> None:
        self.call_soon(cell.take_turn)

    def kill(self, cell: Cell) -> None:
        """As the zygote does: the cell is gone a moment later."""
        played = next((one for one in self.cells if one.cell is cell), None)
        if played is not None:
            self.call_soon(lambda: played.die(KILLED))

    def end_all(self) -> None:
        for played in tuple(self.cells):
            played.die(KILLED)
        self.cells.clear()


def honest(cell: PaperCell, kind: str, isolate: int, payload: bytes) -> None:
    """Play a cell whose runs all succeed with null."""
    if kind == ToCell.LOAD:
        cell.say(FromCell.LOADED, isolate, b'{"handlers":["main"],"log":[]}')
    elif kind == ToCell.BATCH:
        done = [b'[%d,%d,"ok",null]' % (DONE, number) for number in starts(payload)]
        cell.say(FromCell.OUTPUT, isolate, output(b"[" + b",\n".join(done) + b"]"))


def said(*messages: bytes, **figures: int) -> bytes:
    return output(b"[" + b",\n".join(messages) + b"]", **figures)


class NobodyHeldBack:
    """engine.dispatch.Guard: what a cell did in one test is not held against the next."""

    def holds(self, _run: Run) -> bool:
        return False


class Stage:
    """An engine whose next cell a test plays from its first batch on; later cells are honest."""

    def __init__(self, platform: Platform, owner: Project) -> None:
        self.platform = platform
        self.owner = owner
        self.sandbox = PaperSandbox(asyncio.get_running_loop().call_soon, self._play)
        self.batches: list[bytes] = []
        self.cell: PaperCell | None = None
        self._began: asyncio.Event

    def run(self, name: str = "echo") -> Run:
        function = self.platform.catalogue.function(self.owner.id, name)
        assert function is not None
        execution_id = new_id("exe")
        version = function.choose(execution_id)
        return new_run(execution_id, version, "main", "invoke", b"null", wall_clock())

    @contextmanager
    def plays(self) -> Iterator[None]:
        """Take the place of the engine's sandbox, and of what holds bad code back."""
        dispatcher = self.platform.dispatcher
        real, guard = dispatcher.sandbox, dispatcher.guard
        dispatcher.sandbox = self.sandbox  # type: ignore[assignment]  # has what is asked of it
        dispatcher.guard = NobodyHeldBack()
        yield
        self.sandbox.end_all()
        dispatcher.sandbox, dispatcher.guard = real, guard

    async def begin(self, run: Run | None = None) -> tuple[PaperCell, "Ended"]:
        """Submit one run; return its cell once it has the run's batch."""
        self.sandbox.end_all()
        self.cell, self.batches, self._began = None, [], asyncio.Event()
        ended = Ended(run or self.run())
        self.platform.dispatcher.submit(ended.run)
        await self._began.wait()
        assert self.cell is not None
        return self.cell, ended

    async def until(self, batches_count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.batches) < batches_count:
                await asyncio.sleep(0.001)

    def _play(self, cell: PaperCell, kind: str, isolate: int, payload: bytes) -> None:
        if self.cell is None:
            self.cell = cell
        if cell is not self.cell or kind == ToCell.LOAD:
            honest(cell, kind, isolate, payload)
        elif kind == ToCell.BATCH:
            self.batches.append(payload)
            self._began.set()


class Ended:
    """How often a run has ended."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.count = 0
        self._event = asyncio.Event()
        run.on_end = self._on_end

    def _on_end(self, _run: Run) -> None:
        self.count += 1
        self._event.set()

    async def once(self) -> Run:
        async with asyncio.timeout(5):
            await self._event.wait()
        await asyncio.sleep(0.01)
        assert self.count == 1
        return self.run
