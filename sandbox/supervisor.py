"""The engine's side of the sandbox: starts the zygote, keeps warm cells, watches every cell.

Path:   engine.dispatch -> Sandbox.acquire -> Cell.send ... Cell's listener <- frames of the cell
Never:  believes a frame: a malformed one ends its cell. Knows what a run or a function is.
"""

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, ClassVar, Final, Protocol, cast

import msgspec
import psutil
import structlog

from runtimes.contract import FULL_CODE, CellKind, FromCell, GuestError, Runtime, ToCell
from runtimes.webassembly.fingerprint import fingerprint
from sandbox.frames import FrameReader, frame
from sandbox.lockdown import Layer
from sandbox.lockdown.sight import look_at
from sandbox.unread import BEHIND_BYTES, Unread

JAVASCRIPT: Final = CellKind(Runtime.JAVASCRIPT)
START_MS: Final = 10_000  # zygote or cell: far more than it takes, even under load
STARTS_MAX: Final = 4  # a cell killed at its start, or with its zygote, says nothing of the next
CLOSE_MS: Final = 2_000
REAP_S: Final = 1.0  # a dead zygote's channel closes before its status can be had
TURN_NS: Final = 2_000_000  # of one cell in a turn of the loop
KILL_AGAIN_S: Final = 0.05  # when the zygote's channel was full
STOP_GRACE_S: Final = 1.0  # a cell ends itself after STOPPED; one that lies is ended
SMALL_BYTES_MAX: Final = 64 * 1024  # of READY and FAULT: a hundred times what they have
_OUTPUT_HEAD: Final = struct.Struct(">QI")
_V8_ABORTS: Final = frozenset({signal.SIGTRAP, signal.SIGABRT, signal.SIGILL})
_ABORTED: Final = int(signal.SIGABRT)  # exit status of abort() as the first of a pid namespace
_KILLED: Final = int(signal.SIGKILL)
_OVER: Final = object()
_log = structlog.get_logger()


class SandboxError(Exception):
    """Ours: no cell can be had. The run waits or ends; the guest is not to blame."""


class LayersMissing(SandboxError):
    """The operator's: all layers are required, and this machine does not give these."""

    def __init__(self, missing: Sequence[Layer]) -> None:
        self.missing = missing
        reasons = "; ".join(f"{layer.name}: {layer.detail} ({layer.remedy})" for layer in missing)
        super().__init__(f"isolation_required=strict, but {reasons}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """How a cell ended, as the kernel tells it."""

    signal: int  # 0: it exited by itself
    exit_code: int
    peak_bytes: int
    cpu_ns: int = 0  # of its whole life; 0: nobody was left to tell
    lied: bool = False  # the SIGKILL is ours: it said what no honest cell says

    @property
    def out_of_memory(self) -> bool:
        """Say whether the process got no more memory: all guests together may have had too much."""
        return self.signal in _V8_ABORTS or self.exit_code in {_ABORTED, FULL_CODE}


class CellListener(Protocol):
    """Port: whoever uses a cell. Called on the loop; must not block.

    Whatever is raised ends the cell, and the cell alone: the frame was a lie, or met a mistake of
    ours.
    """

    def room_for(self, kind: str, isolate: int) -> int:
        """Return the most bytes of payload that this frame may have now; -1: nobody waits for it.

        Asked when a frame's head is there, before any of the rest is waited for.
        """
        ...

    def on_output(
        self, isolate: int, cpu_ns: int, peak_bytes: int, messages: bytes
    ) -> Iterator[None]:
        """Return what takes it, one turn of the loop at a step: the cell is not read meanwhile."""
        ...

    def on_built(self, isolate: int, program: bytes) -> None:
        """The program is what the runtime understands, and nobody else."""
        ...

    def on_loaded(self, isolate: int, answer: bytes) -> None: ...

    def on_refused(self, isolate: int, error: GuestError) -> None:
        """The sources do not compile, or the program does not load."""
        ...

    def on_stopped(self, isolate: int, stop: bytes) -> None:
        """The cell's watchdog ended a run, and the cell with it; `on_death` follows."""
        ...

    def on_death(self, death: Death) -> None:
        """The cell is gone. Always the last call, exactly once."""
        ...


class Cell(asyncio.Protocol):
    """One live process."""

    def __init__(self, sandbox: "Sandbox", kind: CellKind) -> None:
        self._sandbox = sandbox
        self.kind = kind
        self._reader = FrameReader(self._room_for)
        self._transport: asyncio.Transport | None = None
        self.pid = 0
        self.layers: tuple[Layer, ...] = ()
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.listener: CellListener | None = None
        self.isolates_count = 0
        self._is_condemned = False  # it has been killed, or is about to be: it is not heard
        self._has_lied = False
        self._has_faulted = False
        self._has_stopped = False
        self._lost = False
        self._work: Iterator[None] | None = None  # what it has said, as far as it is not taken yet
        self._is_paused = False  # its channel is not read meanwhile
        self._paused_until_ns = 0
        self._turn_ns = 0  # when its turn began
        self._held: list[bytes] = []  # what is to be written when it has been read
        self._death: Death | None = None

    def next_isolate(self) -> int:
        self.isolates_count += 1
        return self.isolates_count

    def send(self, kind: ToCell, isolate: int, payload: bytes = b"") -> None:
        if self._transport is None or self._lost or self._is_condemned or self._death is not None:
            return
        if self._is_paused or self._held:
            self._held.append(frame(kind, isolate, payload))
        else:
            self._transport.write(frame(kind, isolate, payload))
        if self.unread_bytes > BEHIND_BYTES:
            fullest = self._sandbox.unread.sent(self)
            if fullest is not None:
                _log.warning("cell_does_not_read", pid=fullest.pid, bytes=fullest.unread_bytes)
                fullest.kill()

    @property
    def unread_bytes(self) -> int:
        """Return what waits here to be written to it; 0 when it is about to go: `unread.Reader`."""
        if self._transport is None or self._lost or self._is_condemned:
            return 0
        return self._transport.get_write_buffer_size() + sum(map(len, self._held))

    @property
    def heard_ns(self) -> int:
        """Return until when it may have said what is not taken yet; 0: it was never so.

        In nanoseconds of the monotonic clock.
        """
        return time.monotonic_ns() if self._is_paused else self._paused_until_ns

    def cpu_ns(self) -> int | None:
        """Return the CPU time of its process, as the kernel counts it; None: it is gone."""
        try:
            times = psutil.Process(self.pid).cpu_times()
        except (psutil.Error, ValueError):
            return None
        return int((times.user + times.system) * 1e9)

    def kill(self) -> None:
        """End it now, and hear no more of it; `on_death` follows."""
        self._is_condemned = True
        self._sandbox.kill(self)

    def give_up(self) -> None:
        """End it although its pid may not be known yet: without its channel it ends by itself."""
        self.kill()
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none of its subclasses

    def data_received(self, data: bytes) -> None:
        if self._is_condemned:
            return
        work = self._take(data)
        if self._work is None:
            self._work = work
            self.take_turn()
        else:  # read before the transport knew that it should not
            self._work = chain(self._work, work)

    def take_turn(self) -> None:
        """Go on with what it has said, for one turn of the loop."""
        work = self._work
        is_over = True
        self._turn_ns = time.monotonic_ns()
        try:
            if work is not None and not self._is_condemned:
                is_over = next(work, _OVER) is _OVER
        except Exception as error:  # noqa: BLE001 - the loop of frames: no lie may reach the engine's own
            _log.warning("cell_spoke_nonsense", pid=self.pid, error=repr(error)[:1000])
            self._has_lied = True
            self.kill()
        if is_over:
            self._work = None
        else:
            self._sandbox.wait_for_turn(self)
        self._read_on(is_over)
        self._end_if_over()

    def _read_on(self, wanted: bool) -> None:
        """Read the channel, or do not: a cell that says much waits like those it would hold up."""
        transport = self._transport
        if wanted != self._is_paused or transport is None or transport.is_closing():
            return
        self._is_paused = not wanted
        if wanted:
            self._paused_until_ns = time.monotonic_ns()
            transport.resume_reading()
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self._write_held)  # the channel is read before
        else:
            transport.pause_reading()

    def _write_held(self) -> None:
        """Write what waited for the channel to be read.

        A write to a cell that has ended loses what it said at last.
        """
        if self._is_paused:
            return
        held, self._held = self._held, []
        if self._transport is not None and not (self._lost or self._is_condemned):
            self._transport.writelines(held)

    def _take(self, data: bytes) -> Iterator[None]:
        if self._is_condemned:
            return
        for kind, isolate, payload in self._reader.feed(data):
            steps = self._receive(kind, isolate, payload)
            del payload  # it can be large, and the steps may take many turns
            if steps is not None:
                yield from steps
            if self._is_condemned:
                return
            if time.monotonic_ns() - self._turn_ns > TURN_NS:
                yield

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._sandbox.unread.forget(self)
        self._sandbox.kill(self)
        self._end_if_over()

    def ended(self, death: Death) -> None:
        """The zygote has reaped it."""
        self._death = death
        self._end_if_over()

    def was_not_born(self, why: str) -> None:
        """Say that the zygote could have no process for it."""
        if not self.ready.done():
            self.ready.set_exception(SandboxError(f"no process for a cell can be had: {why}"))
            self.ready.exception()
        self.ended(Death(signal=_KILLED, exit_code=0, peak_bytes=0))

    def _end_if_over(self) -> None:
        if self._death is None or not self._lost or self._work is not None:
            return  # what it still had sent comes first
        if not self.ready.done():
            self.ready.set_exception(SandboxError(f"a cell died at its start: {self._death}"))
            self.ready.exception()
        listener, self.listener = self.listener, None
        if listener is not None:
            listener.on_death(replace(self._death, lied=self._has_lied))

    def _room_for(self, kind: str, isolate: int) -> int:
        if self._has_stopped:
            return -1
        if kind == FromCell.READY:
            return -1 if self.ready.done() else SMALL_BYTES_MAX
        if kind == FromCell.FAULT:
            return -1 if self._has_faulted else SMALL_BYTES_MAX
        return -1 if self.listener is None else self.listener.room_for(kind, isolate)

    def _receive(self, kind: str, isolate: int, payload: bytes) -> Iterator[None] | None:
        """Take one frame; return what is still to be done for it, if anything is."""
        listener = self.listener
        if kind == FromCell.READY:
            self.layers = tuple(msgspec.json.decode(payload, type=list[Layer]))
            if not self.ready.done():
                self.ready.set_result(None)
        elif kind == FromCell.FAULT:
            self._has_faulted = True
            _log.error("cell_fault", pid=self.pid, error=payload[:2000].decode("utf-8", "replace"))
        elif listener is None:
            raise ValueError(f"a frame {kind!r} that nobody waits for any more")
        elif kind == FromCell.OUTPUT:
            cpu_ns, peak_kib = _OUTPUT_HEAD.unpack_from(payload)
            messages = payload[_OUTPUT_HEAD.size :]
            return listener.on_output(isolate, cpu_ns, peak_kib * 1024, messages)
        elif kind == FromCell.BUILT:
            listener.on_built(isolate, payload)
        elif kind == FromCell.REFUSED:
            listener.on_refused(isolate, msgspec.json.decode(payload, type=GuestError))
        elif kind == FromCell.LOADED:
            listener.on_loaded(isolate, payload)
        elif kind == FromCell.STOPPED:
            self._has_stopped = True
            asyncio.get_running_loop().call_later(STOP_GRACE_S, self.kill)
            listener.on_stopped(isolate, payload)
        else:
            raise ValueError(f"frame kind {kind!r}")
        return None


@dataclass(slots=True)
class _Zygote:
    process: subprocess.Popen[bytes]
    channel: socket.socket
    spawned: deque[Cell] = field(default_factory=deque)  # asked for, pid not known yet
    cells: dict[int, Cell] = field(default_factory=dict)


class Sandbox:
    """Cells on this node: warm ones in a pool, the others with whoever acquired them."""

    zygote_command: ClassVar[tuple[str, ...]] = (
        sys.executable,
        "-I",
        "-m",
        "sandbox.zygote_unsafe",
    )

    def __init__(self, *, warm_count: int, cell_memory_mb: int, strict: bool) -> None:
        self._warm_count = warm_count
        self._cell_memory_mb = cell_memory_mb
        self._strict = strict
        self._zygote: _Zygote | None = None
        self._warm: dict[CellKind, deque[Cell]] = {}  # of those that somebody has asked for
        self._filling: dict[CellKind, asyncio.Task[None]] = {}
        self._starting_zygote = asyncio.Lock()
        self._closing = False
        self._no_warm = False
        self._room = asyncio.Event()
        self._room.set()
        self._turns: deque[Cell] = deque()
        self.layers: tuple[Layer, ...] = ()
        self.unread: Unread[Cell] = Unread()

    async def start(self) -> None:
        """Start the zygote and one cell, and learn which layers of the lockdown stand.

        Raises:
            SandboxError: no cell starts, or `strict` and a layer is missing.
        """
        try:
            cell = await self._spawn(JAVASCRIPT)
        except SandboxError:
            await self.close()
            raise
        unseen = look_at(cell.pid)
        if unseen is not None and self._strict:
            await self.close()
            raise LayersMissing([unseen])
        self.layers = (*cell.layers, *([unseen] if unseen else []))
        self._warm[JAVASCRIPT] = deque([cell])
        self._fill(JAVASCRIPT)

    @property
    def alive(self) -> bool:
        return self._zygote is not None and self._zygote.process.poll() is None

    @property
    def zygote_pid(self) -> int:
        return 0 if self._zygote is None else self._zygote.process.pid

    def cells(self) -> tuple[Cell, ...]:
        """Return all cells that are alive, whoever has them."""
        return () if self._zygote is None else tuple(self._zygote.cells.values())

    def warm_cells(self) -> frozenset[Cell]:
        return frozenset(cell for warm in self._warm.values() for cell in warm)

    def limit_cells(self, *, no_warm: bool, none: bool) -> None:
        """Keep no cells warm, or start none at all, until this is called otherwise."""
        had_none, self._no_warm = self._no_warm, no_warm
        if none:
            self._room.clear()
        else:
            self._room.set()
        if had_none and not no_warm:
            for kind in self._warm:
                self._fill(kind)

    def fingerprint(self, kind: CellKind) -> str:
        """Return what a program compiled here fits: it is compiled anew where this differs."""
        return fingerprint(hardened=kind.hardened) if kind.runtime is Runtime.WASM else ""

    async def acquire(self, kind: CellKind = JAVASCRIPT) -> Cell:
        """Return a blank, ready cell: a warm one when there is one.

        A kind of cell is kept warm from the first time that it is asked for.

        Raises:
            SandboxError: none started, STARTS_MAX times in a row; or none may, see `limit_cells`.
        """
        await self._wait_for_room()
        warm = self._warm.setdefault(kind, deque())
        while warm:
            cell = warm.popleft()
            if not (cell._lost or cell._is_condemned):  # noqa: SLF001 - same file
                self._fill(kind)
                return cell
        for start in range(1, STARTS_MAX + 1):
            try:
                cell = await self._spawn(kind)
            except SandboxError as error:
                if start == STARTS_MAX or self._closing:
                    raise
                _log.warning("cell_not_started", start=start, error=str(error))
            else:
                break
        self._fill(kind)
        return cell

    async def _wait_for_room(self) -> None:
        try:
            async with asyncio.timeout(START_MS / 1000):
                await self._room.wait()
        except TimeoutError:
            raise SandboxError("the cells of this node hold all the memory they may") from None

    def wait_for_turn(self, cell: Cell) -> None:
        """Have it go on with what it said when the loop comes round: one cell each time."""
        self._turns.append(cell)
        if len(self._turns) == 1:
            asyncio.get_running_loop().call_soon(self._next_turn)

    def _next_turn(self) -> None:
        cell = self._turns.popleft()
        if self._turns:
            asyncio.get_running_loop().call_soon(self._next_turn)
        cell.take_turn()

    def kill(self, cell: Cell) -> None:
        zygote = self._zygote
        if zygote is None or zygote.cells.get(cell.pid) is not cell:
            return
        try:
            zygote.channel.send(b"kill %d" % cell.pid)
        except BlockingIOError:  # it has much to do, and the cell must not outlive that
            asyncio.get_running_loop().call_later(KILL_AGAIN_S, self.kill, cell)
        except OSError:
            pass  # it is dead, and its cells with it

    async def close(self) -> None:
        self._closing = True
        for task in tuple(self._filling.values()):
            task.cancel()
        zygote, self._zygote = self._zygote, None
        if zygote is None:
            return
        asyncio.get_running_loop().remove_reader(zygote.channel)
        zygote.channel.close()  # the zygote kills its cells and ends
        for cell in (*zygote.cells.values(), *zygote.spawned):
            if cell._transport is not None:  # noqa: SLF001
                cell._transport.abort()  # noqa: SLF001
        try:
            await asyncio.to_thread(zygote.process.wait, CLOSE_MS / 1000)
        except subprocess.TimeoutExpired:
            zygote.process.kill()

    def _fill(self, kind: CellKind) -> None:
        full = len(self._warm[kind]) >= self._warm_count
        if self._closing or self._no_warm or kind in self._filling or full:
            return
        task = asyncio.get_running_loop().create_task(self._fill_now(kind))
        self._filling[kind] = task
        task.add_done_callback(lambda _task: self._filling.pop(kind))

    async def _fill_now(self, kind: CellKind) -> None:
        warm = self._warm[kind]
        while len(warm) < self._warm_count and not self._closing and not self._no_warm:
            try:
                warm.append(await self._spawn(kind))
            except SandboxError as error:
                _log.error("no_warm_cell", error=str(error))
                return

    async def _spawn(self, kind: CellKind) -> Cell:
        cell = Cell(self, kind)
        try:
            async with self._starting_zygote:
                zygote = self._zygote
                if zygote is None or zygote.process.poll() is not None:
                    zygote = self._zygote = await self._start_zygote()
            await self._ask_for(cell, zygote)
            async with asyncio.timeout(START_MS / 1000):
                await asyncio.shield(cell.ready)
        except TimeoutError:
            cell.give_up()
            raise SandboxError(f"a cell was not ready within {START_MS} ms") from None
        except OSError as error:  # the zygote is gone, or the node is out of processes or files
            raise SandboxError(f"no cell can be started: {error}") from error
        if cell._lost:  # noqa: SLF001 - killed since it was ready; nobody listened
            raise SandboxError("a cell died as soon as it was ready")
        self._check_layers(cell)
        return cell

    def _check_layers(self, cell: Cell) -> None:
        """Refuse a cell without all of its walls if the operator wants none such.

        Otherwise refuse one that lacks what the first one had: that was said at the start, this
        would not be. It passes with what ran out, as namespaces do.
        """
        missing = [layer for layer in cell.layers if not layer.active]
        lost = [layer for layer in missing if self.layers and layer not in self.layers]
        for layer in lost:
            _log.error(
                "cell_without_a_wall", pid=cell.pid, layer=layer.name, why=layer.detail,
                remedy=layer.remedy,
            )  # fmt: skip
        if missing and self._strict:
            cell.kill()
            raise LayersMissing(missing)
        if lost:
            cell.kill()
            raise SandboxError(
                "a cell lacks a wall that the first one had: "
                + "; ".join(f"{layer.name}: {layer.detail}" for layer in lost)
            )

    async def _ask_for(self, cell: Cell, zygote: _Zygote) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            await asyncio.get_running_loop().create_connection(lambda: cell, sock=ours)
            order = f"spawn {cell.kind}".encode()
            socket.send_fds(zygote.channel, [order], [theirs.fileno()])
        zygote.spawned.append(cell)  # in the order of the requests: the answers name only the pid

    async def _start_zygote(self) -> _Zygote:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process = subprocess.Popen(  # noqa: ASYNC220, S603 - 1 ms, once; ourselves
            [*self.zygote_command, str(theirs.fileno()), str(self._cell_memory_mb)],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={},
        )
        theirs.close()
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        zygote = _Zygote(process, ours)
        started = loop.create_future()

        def readable() -> None:
            try:
                message = ours.recv(256)
            except BlockingIOError:
                return
            except OSError:  # reset: it died with requests of ours unread
                message = b""
            if not message:
                loop.remove_reader(ours)
                self._zygote_died(zygote)
                if not started.done():
                    started.set_exception(SandboxError("the zygote died at its start"))
            elif not started.done():
                started.set_result(None)
            else:
                self._heard(zygote, json.loads(message))

        loop.add_reader(ours, readable)
        try:
            async with asyncio.timeout(START_MS / 1000):
                await started
        except TimeoutError:
            loop.remove_reader(ours)
            ours.close()
            process.kill()
            raise SandboxError(f"the zygote was not ready within {START_MS} ms") from None
        return zygote

    def _heard(self, zygote: _Zygote, message: dict[str, Any]) -> None:
        pid = message["pid"]
        if "status" not in message:
            cell = zygote.spawned.popleft()
            if pid == 0:
                cell.was_not_born(os.strerror(message["errno"]))
                return
            cell.pid = pid
            zygote.cells[pid] = cell
            return
        ended = zygote.cells.pop(pid, None)
        if ended is None:
            return
        with suppress(KeyError, ValueError):
            self._warm[ended.kind].remove(ended)
        status = message["status"]
        death = Death(
            signal=os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
            exit_code=os.WEXITSTATUS(status) if os.WIFEXITED(status) else 0,
            peak_bytes=message["max_rss_kib"] * 1024,
            cpu_ns=message["cpu_us"] * 1000,
        )
        ended.ended(death)

    def _zygote_died(self, zygote: _Zygote) -> None:
        """Its cells die with it (parent-death signal); the next spawn starts another."""
        if self._closing:
            return
        _log.error("zygote_died", exit_code=zygote.process.poll())
        if self._zygote is zygote:  # `poll` may not know yet, and its channel is of no more use
            self._zygote = None
        zygote.channel.close()
        asyncio.get_running_loop().call_later(REAP_S, zygote.process.poll)
        dead = (*zygote.cells.values(), *zygote.spawned)
        zygote.cells.clear()
        zygote.spawned.clear()
        for cell in dead:
            with suppress(KeyError, ValueError):
                self._warm[cell.kind].remove(cell)
            cell.ended(Death(signal=_KILLED, exit_code=0, peak_bytes=0))
        for kind in self._warm:
            self._fill(kind)
