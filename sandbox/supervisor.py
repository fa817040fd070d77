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
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, cast

import msgspec
import psutil
import structlog

from runtimes.contract import MIB, CellKind, FromCell, GuestError, Runtime, ToCell
from runtimes.webassembly.fingerprint import fingerprint
from sandbox.frames import BadFrame, FrameReader, frame
from sandbox.lockdown import Layer

JAVASCRIPT: Final = CellKind(Runtime.JAVASCRIPT)
START_MS: Final = 10_000  # zygote or cell: far more than it takes, even under load
STARTS_MAX: Final = 4  # a cell killed at its start, or with its zygote, says nothing of the next
CLOSE_MS: Final = 2_000
REAP_S: Final = 1.0  # a dead zygote's channel closes before its status can be had
_OUTPUT_HEAD: Final = struct.Struct(">QI")
_NONSENSE: Final = (
    BadFrame,
    msgspec.MsgspecError,
    struct.error,
    ValueError,
    OverflowError,
    RecursionError,
)
_V8_ABORTS: Final = frozenset({signal.SIGTRAP, signal.SIGABRT, signal.SIGILL})
_KILLED: Final = int(signal.SIGKILL)
_log = structlog.get_logger()


class SandboxError(Exception):
    """Ours: no cell can be had. The run waits or ends; the guest is not to blame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """How a cell ended, as the kernel tells it."""

    signal: int  # 0: it exited by itself
    exit_code: int
    peak_bytes: int

    @property
    def out_of_memory(self) -> bool:
        """V8 aborts the process without memory; SIGKILL that is not ours is the kernel's OOM."""
        return self.signal in _V8_ABORTS


class CellListener(Protocol):
    """Port: whoever uses a cell. Called on the loop; must not block."""

    def on_output(self, isolate: int, cpu_ns: int, peak_bytes: int, messages: bytes) -> None: ...

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
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self.pid = 0
        self.layers: tuple[Layer, ...] = ()
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.listener: CellListener | None = None
        self.isolates_count = 0
        self._lost = False
        self._death: Death | None = None

    def next_isolate(self) -> int:
        self.isolates_count += 1
        return self.isolates_count

    def send(self, kind: ToCell, isolate: int, payload: bytes = b"") -> None:
        if self._transport is not None and not self._lost:
            self._transport.write(frame(kind, isolate, payload))

    def kill(self) -> None:
        """End it now; `on_death` follows."""
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
        try:
            for kind, isolate, payload in self._reader.feed(data):
                self._receive(kind, isolate, payload)
        except _NONSENSE as error:
            _log.warning("cell_spoke_nonsense", pid=self.pid, error=str(error))
            self.kill()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._sandbox.kill(self)
        self._end_if_over()

    def ended(self, death: Death) -> None:
        """The zygote has reaped it."""
        self._death = death
        self._end_if_over()

    def _end_if_over(self) -> None:
        if self._death is None or not self._lost:
            return  # what it still had sent comes first
        if not self.ready.done():
            self.ready.set_exception(SandboxError(f"a cell died at its start: {self._death}"))
            self.ready.exception()
        listener, self.listener = self.listener, None
        if listener is not None:
            listener.on_death(self._death)

    def _receive(  # noqa: C901 - one branch for each kind of frame
        self, kind: str, isolate: int, payload: bytes
    ) -> None:
        listener = self.listener
        if kind == FromCell.OUTPUT:
            cpu_ns, peak_kib = _OUTPUT_HEAD.unpack_from(payload)
            if listener is not None:
                listener.on_output(isolate, cpu_ns, peak_kib * 1024, payload[_OUTPUT_HEAD.size :])
        elif kind == FromCell.READY:
            self.layers = tuple(msgspec.json.decode(payload, type=list[Layer]))
            if not self.ready.done():
                self.ready.set_result(None)
        elif kind == FromCell.FAULT:
            _log.error("cell_fault", pid=self.pid, error=payload[:2000].decode("utf-8", "replace"))
        elif listener is None:
            return
        elif kind == FromCell.BUILT:
            listener.on_built(isolate, payload)
        elif kind == FromCell.REFUSED:
            listener.on_refused(isolate, msgspec.json.decode(payload, type=GuestError))
        elif kind == FromCell.LOADED:
            listener.on_loaded(isolate, payload)
        elif kind == FromCell.STOPPED:
            listener.on_stopped(isolate, payload)
        else:
            raise ValueError(f"frame kind {kind!r}")


@dataclass(slots=True)
class _Zygote:
    process: subprocess.Popen[bytes]
    channel: socket.socket
    spawned: deque[Cell] = field(default_factory=deque)  # asked for, pid not known yet
    cells: dict[int, Cell] = field(default_factory=dict)


class Sandbox:
    """Cells on this node: warm ones in a pool, the others with whoever acquired them."""

    def __init__(self, *, warm_count: int, cell_memory_mb: int, strict: bool) -> None:
        self._warm_count = warm_count
        self._cell_memory_mb = cell_memory_mb
        self._strict = strict
        self._zygote: _Zygote | None = None
        self._warm: dict[CellKind, deque[Cell]] = {}  # of those that somebody has asked for
        self._filling: dict[CellKind, asyncio.Task[None]] = {}
        self._starting_zygote = asyncio.Lock()
        self._closing = False
        self.layers: tuple[Layer, ...] = ()

    async def start(self) -> None:
        """Start the zygote and one cell, and learn which layers of the lockdown stand.

        Raises:
            SandboxError: no cell starts, or `strict` and a layer is missing.
        """
        cell = await self._spawn(JAVASCRIPT)
        self.layers = cell.layers
        missing = [layer for layer in cell.layers if not layer.active]
        if missing and self._strict:
            await self.close()
            reasons = "; ".join(
                f"{layer.name}: {layer.detail} ({layer.remedy})" for layer in missing
            )
            raise SandboxError(f"isolation_required=strict, but {reasons}")
        self._warm[JAVASCRIPT] = deque([cell])
        self._fill(JAVASCRIPT)

    @property
    def alive(self) -> bool:
        return self._zygote is not None and self._zygote.process.poll() is None

    def fingerprint(self, kind: CellKind) -> str:
        """Return what a program compiled here fits: it is compiled anew where this differs."""
        return fingerprint() if kind.runtime is Runtime.WASM else ""

    async def acquire(self, kind: CellKind = JAVASCRIPT) -> Cell:
        """Return a blank, ready cell: a warm one when there is one.

        A kind of cell is kept warm from the first time that it is asked for.

        Raises:
            SandboxError: none started, STARTS_MAX times in a row.
        """
        warm = self._warm.setdefault(kind, deque())
        while warm:
            cell = warm.popleft()
            if not cell._lost:  # noqa: SLF001
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

    def kill(self, cell: Cell) -> None:
        zygote = self._zygote
        if zygote is not None and zygote.cells.get(cell.pid) is cell:
            with suppress(OSError):
                zygote.channel.send(b"kill %d" % cell.pid)

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
        if self._closing or kind in self._filling or full:
            return
        task = asyncio.get_running_loop().create_task(self._fill_now(kind))
        self._filling[kind] = task
        task.add_done_callback(lambda _task: self._filling.pop(kind))

    async def _fill_now(self, kind: CellKind) -> None:
        warm = self._warm[kind]
        while len(warm) < self._warm_count and not self._closing:
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
        self._cap_memory(cell)
        return cell

    async def _ask_for(self, cell: Cell, zygote: _Zygote) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            await asyncio.get_running_loop().create_connection(lambda: cell, sock=ours)
            order = f"spawn {cell.kind}".encode()
            socket.send_fds(zygote.channel, [order], [theirs.fileno()])
        zygote.spawned.append(cell)  # in the order of the requests: the answers name only the pid

    def _cap_memory(self, cell: Cell) -> None:
        """Set RLIMIT_DATA to what the cell has now plus its budget, from outside."""
        with suppress(psutil.Error):
            process = psutil.Process(cell.pid)
            limit = process.memory_info().data + self._cell_memory_mb * MIB
            process.rlimit(psutil.RLIMIT_DATA, (limit, limit))

    async def _start_zygote(self) -> _Zygote:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process = subprocess.Popen(  # noqa: ASYNC220, S603 - 1 ms, once; ourselves
            [sys.executable, "-I", "-m", "sandbox.zygote_unsafe", str(theirs.fileno())],
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
            if pid == 0:  # it could not fork
                cell.ended(Death(signal=_KILLED, exit_code=0, peak_bytes=0))
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
