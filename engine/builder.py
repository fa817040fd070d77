"""Turns an author's files into a program, in a cell of its own: compiled, loaded once, thrown away.

Path:   functions -> here -> a warm cell -> runtimes.javascript.compile, guest
"""

import asyncio
from typing import Final

import msgspec

from engine.clock import Clock
from engine.errors import CompileFailed
from engine.functions import Built
from runtimes.contract import GuestError, ToCell
from sandbox.supervisor import Cell, Death, Sandbox

BUILD_MS: Final = 10_000


class _Loaded(msgspec.Struct):
    handlers: tuple[str, ...]


class Builder:
    """Adapter of `functions.Builder`."""

    def __init__(self, sandbox: Sandbox, clock: Clock) -> None:
        self._sandbox = sandbox
        self._clock = clock

    async def build(self, files: dict[str, str], main: str, memory_mb: int) -> Built:
        """Compile and load; see `functions.Builder`."""
        cell = await self._sandbox.acquire()
        job = _Build(cell)
        try:
            async with asyncio.timeout(BUILD_MS / 1000):
                program = await job.compile(files, main)
                handlers = await job.load(program, memory_mb, self._clock())
        except TimeoutError:
            raise CompileFailed(
                f"compiling and loading took longer than {BUILD_MS} ms",
                file=main, line=0, column=0,
            ) from None  # fmt: skip
        finally:
            cell.listener = None
            cell.kill()
        return Built(program=program.decode(), handlers=handlers)


class _Build:
    """One build in one cell: sandbox.supervisor.CellListener."""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        cell.listener = self

    async def compile(self, files: dict[str, str], main: str) -> bytes:
        request = msgspec.json.encode({"files": files, "main": main})
        self._cell.send(ToCell.BUILD, 0, request)
        program = await self._answer
        self._answer = asyncio.get_running_loop().create_future()
        return program

    async def load(self, program: bytes, memory_mb: int, now_ms: int) -> tuple[str, ...]:
        bindings: dict[str, dict[str, str]] = {"variables": {}, "secrets": {}, "connections": {}}
        request = msgspec.json.encode(
            {
                "program": msgspec.Raw(program),
                "bindings": bindings,
                "memory_mb": memory_mb,
                "now_ms": now_ms,
            }
        )
        self._cell.send(ToCell.LOAD, 1, request)
        return msgspec.json.decode(await self._answer, type=_Loaded).handlers

    def on_built(self, isolate: int, program: bytes) -> None:
        self._settle(program)

    def on_loaded(self, isolate: int, answer: bytes) -> None:
        self._settle(answer)

    def on_output(self, isolate: int, cpu_ns: int, peak_bytes: int, messages: bytes) -> None:
        raise ValueError("an output in a build")

    def on_refused(self, isolate: int, error: GuestError) -> None:
        self._fail(error)

    def on_stopped(self, isolate: int, stop: bytes) -> None:
        outcome = msgspec.json.decode(stop)
        limit = outcome.get("limit")
        figure = f": {limit['name']} {limit['value']}, used {limit['used']}" if limit else ""
        text = f"loading the file ended as {outcome['outcome']}{figure}"
        self._fail(GuestError(name="LoadError", message=text))

    def on_death(self, death: Death) -> None:
        how = "ran out of memory" if death.out_of_memory else "died"
        self._fail(
            GuestError(name="LoadError", message=f"the cell {how} while the file was loaded")
        )

    def _settle(self, answer: bytes) -> None:
        if not self._answer.done():
            self._answer.set_result(answer)

    def _fail(self, error: GuestError) -> None:
        if not self._answer.done():
            self._answer.set_exception(
                CompileFailed(
                    f"{error.name}: {error.message}",
                    file=error.file,
                    line=error.line,
                    column=error.column,
                )
            )
