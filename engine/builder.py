"""Turns an upload into a program, in a cell of its own: compiled, loaded once, thrown away.

Path:   functions, programs -> here -> a warm cell -> runtimes.<language>: compile, guest
Never:  lets one project's modules keep all others waiting: each has one turn at a time.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Any, Final, Literal
from weakref import WeakValueDictionary

import msgspec

from engine.clock import Clock
from engine.errors import CompileFailed, EngineError
from engine.messages import STOP_BYTES_MAX, TOLD_BYTES_MAX, clipped, read_stop
from engine.programs import Built, Recipe
from engine.usage import Usage
from runtimes.contract import (
    MIB,
    FromCell,
    GuestError,
    Runtime,
    SourceWarning,
    ToCell,
    packed,
)
from sandbox.supervisor import Cell, Death, Sandbox, SandboxError

BUILD_MS: Final[Mapping[Runtime, int]] = {
    Runtime.JAVASCRIPT: 10_000,
    Runtime.WASM: 60_000,  # 10 MB take some seconds on a core that is not busy
}
MODULES_AT_ONCE: Final = 2  # each may take a core, and the memory of a whole cell
TURN_WAIT_MS: Final = 120_000
_SMALLER: Final = "make it smaller: wasm-opt -Oz --strip-debug, or split it into two functions"
PROGRAM_BYTES_MAX: Final[Mapping[Runtime, int]] = {
    Runtime.JAVASCRIPT: 16 * MIB,  # sources of 1 MiB, lowered, each character escaped
    Runtime.WASM: 80 * MIB,  # 10 MiB become some 30; a LOAD frame has room for it
}
_NO_BINDINGS: Final[Mapping[str, Any]] = {"variables": {}, "secrets": {}, "connections": {}}


class Overloaded(EngineError):
    """Ours: no cell can be had for this now; the same request may succeed in a moment."""

    code = "overloaded"


class _Loaded(msgspec.Struct):
    handlers: Annotated[tuple[str, ...], msgspec.Meta(max_length=32)]  # there are ten


class _Compiled(msgspec.Struct):
    warnings: Annotated[tuple[SourceWarning, ...], msgspec.Meta(max_length=100)] = ()


class _LoadedModule(_Loaded):
    kind: Literal["command", "core"]


class Builder:
    """Adapter of `programs.Builder`."""

    def __init__(
        self, sandbox: Sandbox, clock: Clock, *, cell_memory_mb: int, usage: Usage | None = None
    ) -> None:
        """`usage`: charges projects for the CPU time of their builds; None: nobody is."""
        self._usage = usage
        self._sandbox = sandbox
        self._clock = clock
        self._cell_memory_mb = cell_memory_mb
        self._turns = _Turns()

    async def build(self, recipe: Recipe, *, is_asked: bool = False) -> Built:
        """Compile and load; see `programs.Builder`."""
        if is_asked and self._usage is not None:
            self._usage.check(recipe.project_id)
        if recipe.runtime is Runtime.JAVASCRIPT:
            return await self._build(recipe)
        async with self._turns.of(recipe.project_id):
            return await self._build(recipe)

    async def _build(self, recipe: Recipe) -> Built:
        try:
            cell = await self._sandbox.acquire(recipe.kind)
        except SandboxError as error:
            raise Overloaded(f"nothing can be compiled now: {error}; try again") from error
        if self._usage is not None:
            self._usage.cell_begun(recipe.project_id, cell)
        build_ms = BUILD_MS[recipe.runtime]
        job = _Build(cell, recipe, self._cell_memory_mb)
        try:
            async with asyncio.timeout(build_ms / 1000):
                program = await job.compile()
                answer = await job.load(program, self._clock())
        except TimeoutError:
            remedy = f"; {_SMALLER}" if recipe.runtime is Runtime.WASM else ""
            raise CompileFailed(
                f"compiling and loading took longer than {build_ms} ms{remedy}",
                file=recipe.main, line=0, column=0,
            ) from None  # fmt: skip
        finally:
            cell.listener = None
            if self._usage is not None:
                self._usage.cell_ended(cell)
            cell.kill()
        try:
            return _read(recipe.runtime, program, answer)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise CompileFailed(  # its code has taken the cell over, and the cell lies
                f"the cell that loaded it gave no proper answer: {str(error)[:200]}",
                file=recipe.main, line=0, column=0,
            ) from None  # fmt: skip


def _read(runtime: Runtime, program: bytes, answer: bytes) -> Built:
    """Return what a cell says that it has built.

    Raises:
        msgspec.MsgspecError, UnicodeDecodeError, RecursionError: no cell of ours says that.
    """
    if runtime is Runtime.JAVASCRIPT:
        loaded = msgspec.json.decode(answer, type=_Loaded)
        warnings = msgspec.json.decode(program, type=_Compiled).warnings
        return Built(program=program, handlers=loaded.handlers, warnings=warnings)
    module = msgspec.json.decode(answer, type=_LoadedModule)
    return Built(program=program, handlers=module.handlers, kind=module.kind)


class _Turns:
    """Who may compile a module: one of a project, MODULES_AT_ONCE in all, in order of arrival."""

    def __init__(self) -> None:
        self._all = asyncio.Semaphore(MODULES_AT_ONCE)
        self._projects: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def of(self, project_id: str) -> AsyncIterator[None]:
        own = self._projects.setdefault(project_id, asyncio.Lock())
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(TURN_WAIT_MS / 1000):
                    await held.enter_async_context(own)
                    await held.enter_async_context(self._all)
            except TimeoutError:
                raise Overloaded(
                    f"other modules have been compiled for {TURN_WAIT_MS} ms; try again"
                ) from None
            yield


class _Build:
    """One build in one cell: sandbox.supervisor.CellListener."""

    def __init__(self, cell: Cell, recipe: Recipe, cell_memory_mb: int) -> None:
        self._cell = cell
        self._recipe = recipe
        self._cell_memory_mb = cell_memory_mb
        self._step = "compiled"
        self._answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        cell.listener = self

    async def compile(self) -> bytes:
        recipe = self._recipe
        header = {
            "main": recipe.main,
            "options": recipe.options,
            "fuel": recipe.fuel,
            "hardened": recipe.hardened,
        }
        self._cell.send(ToCell.BUILD, 0, packed(msgspec.json.encode(header), recipe.body))
        program = await self._answer
        self._answer = asyncio.get_running_loop().create_future()
        self._step = "loaded"
        return program

    async def load(self, program: bytes, now_ms: int) -> bytes:
        recipe = self._recipe
        header = {
            "main": recipe.main,
            "bindings": _NO_BINDINGS,
            "memory_mb": recipe.memory_mb,
            "fuel": recipe.fuel,
            "now_ms": now_ms,
            "name": recipe.name,
            "options": recipe.options,
            "hardened": recipe.hardened,
            "trial": True,  # a start that fails is told to the author now, and not to every run
        }
        self._cell.send(ToCell.LOAD, 1, packed(msgspec.json.encode(header), program))
        return await self._answer

    def room_for(self, kind: str, isolate: int) -> int:
        """Return the most that a cell can have to say to this step; see the port."""
        if self._answer.done():
            return -1
        if kind == FromCell.BUILT and self._step == "compiled":
            return PROGRAM_BYTES_MAX[self._recipe.runtime]
        if kind == FromCell.LOADED and self._step == "loaded":
            return MIB
        if kind == FromCell.REFUSED:
            return TOLD_BYTES_MAX
        return STOP_BYTES_MAX if kind == FromCell.STOPPED else -1

    def on_built(self, isolate: int, program: bytes) -> None:
        self._settle(program)

    def on_loaded(self, isolate: int, answer: bytes) -> None:
        self._settle(answer)

    def on_output(
        self, isolate: int, cpu_ns: int, peak_bytes: int, messages: bytes
    ) -> Iterator[None]:
        raise ValueError("an output in a build")

    def on_refused(self, isolate: int, error: GuestError) -> None:
        self._fail(clipped(error))

    def on_stopped(self, isolate: int, stop: bytes) -> None:
        told = read_stop(stop)
        hit = told.limit
        figure = f": {hit.name} {hit.value}, used {hit.used}" if hit is not None else ""
        text = f"loading the {self._what} ended as {told.outcome}{figure}"
        self._fail(GuestError(name="LoadError", message=text))

    def on_death(self, death: Death) -> None:
        if death.signal == signal.SIGKILL and not self._answer.done():
            # Nobody's fault who sent this: somebody, or the kernel, took the cell away.
            self._answer.set_exception(Overloaded("the cell that compiled was killed; try again"))
            return
        how = "ran out of memory" if death.out_of_memory else "died"
        text = f"the cell {how} while the {self._what} was {self._step}"
        if self._recipe.runtime is Runtime.WASM:
            text += (
                f"; it has {self._cell_memory_mb} MB (CLOUDCODE_CELL_MEMORY_MB). "
                f"If the module is large, {_SMALLER}"
            )
        self._fail(GuestError(name="LoadError", message=text))

    @property
    def _what(self) -> str:
        return "module" if self._recipe.runtime is Runtime.WASM else "file"

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
