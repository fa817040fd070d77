"""Brings runs to cells: one cell a project, one isolate a version, one batch at a time.

Path:   events, api.hot -> Dispatcher.submit -> House (cell) -> runner (isolate) -> finish
Never:  loses a run: when a cell dies its runs start again, but for the one that killed it.

While an isolate works on a batch, whatever arrives for it gathers and goes with the next one; a
run that finds the isolate idle leaves at once.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import msgspec
import structlog

from engine.batches import as_batch
from engine.catalogue import Version
from engine.clock import Clock
from engine.errors import EngineError
from engine.messages import MESSAGES, STOP, Stop
from engine.run import Run
from engine.runner import Broker, Runner
from engine.store.database import StoreFailed
from runtimes.contract import MIB, CellKind, GuestError, Outcome, Runtime, ToCell, packed
from sandbox.supervisor import Cell, Death, Sandbox, SandboxError

SWEEP_MS: Final = 20  # how late a wall limit may be noticed
RETRY_S: Final = 1.0  # when no cell can be had, queued runs wait this long for the next try
QUARANTINE_MS: Final = 60_000  # a version that killed a cell has one of its own for this long
ALONE_MAX: Final = 2  # suspects of a cell's death that run at a time, each in a cell of its own
ISOLATES_MAX: Final = 150  # in one cell: each takes about 3 MB of its RLIMIT_DATA, 1 MB of it real
_log = structlog.get_logger()
_encode: Final = msgspec.json.encode


class Programs(Protocol):
    """Port: what a cell loads to run a version. Adapter: `engine.programs`."""

    def at_hand(self, version: Version) -> bytes | None:
        """Return the program if that needs no waiting."""
        ...

    async def program(self, version: Version) -> bytes:
        """Return it from wherever it is.

        Raises:
            EngineError: it is gone, or does not compile any more.
        """
        ...

    async def rebuild(self, version: Version) -> bytes:
        """Compile it anew: a cell has refused the one there is.

        Raises:
            EngineError: as for `program`.
        """
        ...


class Dispatcher:
    """All runs in flight on this node."""

    def __init__(
        self,
        sandbox: Sandbox,
        broker: Broker,
        finish: Callable[[Run], None],
        on_log: Callable[[Run, list[tuple[str, int, str]]], None],
        clock: Clock,
        cells_max: int,
        cell_memory_mb: int,
        programs: Programs,
        is_hardened: Callable[[str], bool],
    ) -> None:
        """`is_hardened` says of a project's id in which kind of cell its code runs."""
        self.sandbox = sandbox
        self.programs = programs
        self.broker = broker
        self.finish = finish
        self.on_log = on_log
        self.clock = clock
        self._cells_max = cells_max
        self._is_hardened = is_hardened
        self.guests_bytes = cell_memory_mb * MIB * 3 // 4  # of a cell; the rest is its runtime's
        self._houses: dict[str, House] = {}  # in order of use, the least recently used first
        self._runners: dict[Version, Runner] = {}  # those in project cells
        self._quarantined: dict[str, int] = {}  # version id -> until, ms
        self._suspects: deque[Run] = deque()  # wait to run alone
        self._sweeper: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.inflight = 0
        self.closed = False

    @property
    def busy_cells(self) -> int:
        return sum(not house.idle for house in self._houses.values())

    def submit(self, run: Run) -> None:
        """Take a run; `finish(run)` is called once it has ended, whatever happens."""
        if run.handler == "queue" and not run.messages:
            run.input = as_batch(run)
        self.inflight += 1
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_MS / 1000, self._sweep)
        runner = self._runners.get(run.version)
        if runner is None or run.version.id in self._quarantined:
            runner = self._runner(run.version)
        runner.add(run)

    def cancel(self, run: Run) -> None:
        """End a run as soon as its isolate can be told; nothing that it has done will be stored."""
        if run in self._suspects:
            self._suspects.remove(run)
            run.outcome = Outcome.CANCELLED
            self.end(run)
            return
        for house in tuple(self._houses.values()):
            if house.cancel(run):
                return

    def end(self, run: Run) -> None:
        """The run has its outcome: hand it on."""
        run.ended_ns = time.monotonic_ns()
        if run.timers:
            run.stop_timers()
        self.inflight -= 1
        self.finish(run)

    def retire(self, version: Version) -> None:
        """The version is no longer live: its isolate goes as soon as nothing runs in it."""
        for house in tuple(self._houses.values()):
            house.retire(version)

    def quarantined(self) -> dict[str, int]:
        """Return which versions have a cell of their own for having killed one: until when, ms."""
        now_ms = self.clock()
        return {version: until for version, until in self._quarantined.items() if until > now_ms}

    def quarantine(self, version: Version) -> None:
        self._quarantined[version.id] = self.clock() + QUARANTINE_MS

    def rerun_alone(self, run: Run) -> None:
        """Start a run again in a cell where nothing else is: it may have killed the last one."""
        self._suspects.append(run)
        self._next_suspect()

    def _next_suspect(self) -> None:
        alone = sum(house.alone for house in self._houses.values())
        while self._suspects and alone < ALONE_MAX:
            run = self._suspects.popleft()
            key = f"alone:{run.execution_id}:{run.losses}"
            house = House(self, key, self._kind(run.version), alone=True)
            self._houses[house.key] = house
            Runner(run.version, house).add(run)
            alone += 1

    def forget(self, house: "House") -> None:
        if self._houses.get(house.key) is house:
            del self._houses[house.key]
        if house.alone:
            self._next_suspect()

    async def close(self) -> None:
        """Stop: what is queued stays in the store; what waits for an answer ends as cancelled."""
        self.closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for house in tuple(self._houses.values()):
            house.cancel_all()
        while self._suspects:
            run = self._suspects.popleft()
            run.outcome = Outcome.CANCELLED
            if not run.queued:
                self.end(run)

    def _runner(self, version: Version) -> "Runner":
        until = self._quarantined.get(version.id)
        if until is not None and until <= self.clock():
            del self._quarantined[version.id]
            until = None
            alone = self._houses.get(f"quarantine:{version.id}")
            if alone is not None and alone.idle:
                alone.leave()
        kind = self._kind(version)
        own = f"{kind}:{version.project_id}"
        key = own if until is None else f"quarantine:{version.id}"
        house = self._houses.pop(key, None) or House(self, key, kind)
        self._houses[key] = house  # last: the most recently used
        self._evict()
        runner = house.runner(version)
        if until is None:
            self._runners[version] = runner
        return runner

    def _kind(self, version: Version) -> CellKind:
        return CellKind(version.runtime, self._is_hardened(version.project_id))

    def _evict(self) -> None:
        spare = len(self._houses) - self._cells_max
        if spare <= 0:
            return
        idle = [house for house in self._houses.values() if house.idle and not house.alone]
        for house in idle[: min(spare, len(idle) - 1)]:
            house.leave()

    def runner_gone(self, runner: "Runner") -> None:
        if self._runners.get(runner.version) is runner:
            del self._runners[runner.version]

    def _sweep(self) -> None:
        busy = self.inflight > 0 and not self.closed
        # Armed first: nothing that goes wrong below may end the sweeping.
        self._sweeper = self._loop.call_later(SWEEP_MS / 1000, self._sweep) if busy else None
        now_ns = time.monotonic_ns()
        for house in tuple(self._houses.values()):
            house.sweep(now_ns)


class House:
    """One cell and the isolates in it; survives the cell, which is replaced when it dies."""

    def __init__(
        self, dispatcher: Dispatcher, key: str, kind: CellKind, *, alone: bool = False
    ) -> None:
        self.dispatcher = dispatcher
        self.key = key
        self.kind = kind
        self.alone = alone
        self._cell: Cell | None = None
        self._starting: asyncio.Task[None] | None = None
        self._fetching: dict[Runner, asyncio.Task[None]] = {}
        self._rebuilt: set[Version] = set()  # whose program a cell of this house has refused
        self._runners: dict[int, Runner] = {}  # by isolate
        self._by_version: dict[Version, Runner] = {}
        self._stop: tuple[Runner, Stop] | None = None

    @property
    def idle(self) -> bool:
        return all(runner.idle for runner in self._by_version.values())

    def runner(self, version: Version) -> "Runner":
        """Return the version's runner, made now if need be."""
        return self._by_version.get(version) or Runner(version, self)

    def enter(self, runner: "Runner") -> None:
        self._by_version[runner.version] = runner

    def cancel(self, run: Run) -> bool:
        runner = self._by_version.get(run.version)
        return runner is not None and runner.cancel(run)

    def retire(self, version: Version) -> None:
        runner = self._by_version.get(version)
        if runner is not None:
            runner.leave_if_over()

    def load(self, runner: "Runner") -> None:
        """Have the runner's version loaded, in a new cell if there is none."""
        if self._cell is None:
            if self._starting is None:
                self._starting = asyncio.get_running_loop().create_task(self._start())
            return
        if len(self._runners) >= ISOLATES_MAX:
            self._unload_least_used()
        runner.isolate = 0
        program = self.dispatcher.programs.at_hand(runner.version)
        if program is None:
            self._fetch(runner)
        else:
            self._send_program(runner, program)

    def _send_program(self, runner: "Runner", program: bytes) -> None:
        if self._cell is None:
            return  # the next cell loads every runner
        runner.isolate = self._cell.next_isolate()
        runner.used_ns = time.monotonic_ns()
        self._runners[runner.isolate] = runner
        header = self._load_header(runner.version)
        self._cell.send(ToCell.LOAD, runner.isolate, packed(header, program))

    def _load_header(self, version: Version) -> bytes:
        memory_mb = {handler: version.limits(handler).memory_mb for handler in version.handlers}
        header = {
            "bindings": version.bindings,
            "memory_mb": max(memory_mb.values()),
            "now_ms": self.dispatcher.clock(),
        }
        if version.runtime is Runtime.WASM:
            header |= {
                "handlers_memory_mb": memory_mb,
                "name": version.function,
                "fuel": version.overrides.get("fuel", 0),
                "options": version.options,
            }
        return _encode(header)

    def _fetch(self, runner: "Runner", *, anew: bool = False) -> None:
        """Get the runner's program first, and then load it."""
        if runner in self._fetching:
            return
        task = asyncio.get_running_loop().create_task(self._fetch_now(runner, anew=anew))
        self._fetching[runner] = task
        task.add_done_callback(lambda task: self._fetched(runner, task))

    def _fetched(self, runner: "Runner", task: asyncio.Task[None]) -> None:
        self._fetching.pop(runner, None)
        if task.cancelled() or (error := task.exception()) is None:
            return
        _log.error("program_not_read", function=runner.version.function, error=str(error))
        told = GuestError(name="LoadError", message="the program could not be read from the store")
        runner.fail_all(told, keep_queued=True)
        asyncio.get_running_loop().call_later(RETRY_S, self._fetch_again, runner)

    def _fetch_again(self, runner: "Runner") -> None:
        if runner.idle:
            self.unload(runner)
        elif self._by_version.get(runner.version) is runner and not runner.isolate:
            self._fetch(runner)

    async def _fetch_now(self, runner: "Runner", *, anew: bool) -> None:
        programs, version = self.dispatcher.programs, runner.version
        while True:
            try:
                program = await (programs.rebuild(version) if anew else programs.program(version))
                break
            except StoreFailed:
                raise  # it may be there again in a moment: see `_fetched`
            except EngineError as error:
                told = GuestError(name="LoadError", message=str(error))
                waits = error.code == "overloaded"  # ours: what is queued can wait for a cell
                runner.fail_all(told, keep_queued=waits)
                if runner.idle:
                    self.unload(runner)
                    return
                await asyncio.sleep(RETRY_S)
        self._fetching.pop(runner, None)
        if self._by_version.get(version) is runner and runner.loading and not runner.isolate:
            self._send_program(runner, program)

    def send(self, isolate: int, batch: bytes) -> None:
        assert self._cell is not None
        self._cell.send(ToCell.BATCH, isolate, batch)

    def free_bytes(self) -> int:
        held = sum(runner.held_bytes for runner in self._by_version.values())
        return max(0, self.dispatcher.guests_bytes - held)

    def unload(self, runner: "Runner") -> None:
        self._by_version.pop(runner.version, None)
        self.dispatcher.runner_gone(runner)
        if self._runners.pop(runner.isolate, None) is not None and self._cell is not None:
            self._cell.send(ToCell.UNLOAD, runner.isolate)
        if self.alone and not self._by_version:
            self.leave()

    def leave(self) -> None:
        """Give the cell up; only called when nothing runs in it."""
        self.dispatcher.forget(self)
        for runner in tuple(self._by_version.values()):
            self.dispatcher.runner_gone(runner)
        self._by_version.clear()
        self._runners.clear()
        cell, self._cell = self._cell, None
        if cell is not None:
            cell.listener = None
            cell.kill()

    def _unload_least_used(self) -> None:
        idle = [runner for runner in self._runners.values() if runner.at_rest]
        if idle:
            self.unload(min(idle, key=lambda runner: runner.used_ns))

    def kill(self) -> None:
        if self._cell is not None:
            self._cell.kill()

    def sweep(self, now_ns: int) -> None:
        for runner in tuple(self._by_version.values()):
            runner.sweep(now_ns)

    def cancel_all(self) -> None:
        for task in (self._starting, *self._fetching.values()):
            if task is not None:
                task.cancel()
        for runner in tuple(self._by_version.values()):
            runner.cancel_all()

    async def _start(self) -> None:
        try:
            cell = await self.dispatcher.sandbox.acquire(self.kind)
        except SandboxError as error:
            _log.error("no_cell", house=self.key, error=str(error))
            for runner in tuple(self._by_version.values()):
                runner.fail_all(
                    GuestError(name="SandboxError", message=str(error)), keep_queued=True
                )
            await asyncio.sleep(RETRY_S)
            self._starting = None
            if not self.idle:
                self._starting = asyncio.get_running_loop().create_task(self._start())
            elif self.alone:
                self.leave()
            return
        self._starting = None
        self._cell = cell
        cell.listener = self
        for runner in tuple(self._by_version.values()):
            self.load(runner)

    # sandbox.supervisor.CellListener
    def on_output(self, isolate: int, cpu_ns: int, peak_bytes: int, messages: bytes) -> None:
        runner = self._runners.get(isolate)
        if runner is not None:
            runner.on_output(cpu_ns, peak_bytes, MESSAGES.decode(messages))

    def on_built(self, isolate: int, program: bytes) -> None:
        raise ValueError("a program that nobody asked for")

    def on_loaded(self, isolate: int, answer: bytes) -> None:
        runner = self._runners.get(isolate)
        if runner is not None:
            self._rebuilt.discard(runner.version)
            runner.on_loaded()

    def on_refused(self, isolate: int, error: GuestError) -> None:
        runner = self._runners.get(isolate)
        if runner is None:
            return
        if not runner.loading:
            raise ValueError("a version that was not being loaded")
        if error.name == "MemoryError" and not self.alone:
            runner.rerun_all_alone()
            self.unload(runner)
            return
        if error.name == "LinkError" and runner.version not in self._rebuilt:
            # It was compiled by another Wasmtime, or for another CPU, than this cell has.
            self._rebuilt.add(runner.version)
            self._runners.pop(isolate)
            runner.isolate = 0
            self._fetch(runner, anew=True)
            return
        runner.fail_all(error)
        self.unload(runner)

    def on_stopped(self, isolate: int, stop: bytes) -> None:
        runner = self._runners.get(isolate)
        if runner is not None:
            self._stop = (runner, STOP.decode(stop))

    def on_death(self, death: Death) -> None:
        """Find who killed the cell; everybody else starts again."""
        self._cell = None
        self._runners.clear()
        stop, self._stop = self._stop, None
        runners = tuple(self._by_version.values())
        unloaded = [runner for runner in runners if runner.loading]
        for runner in runners:
            runner.hold()
        if stop is not None:
            stop[0].name_the_run(stop[1])
        if stop is not None and (stop[0].holds(stop[1].run) or stop[0] in unloaded):
            stop[0].stopped(stop[1], loading=stop[0] in unloaded)
        else:
            suspects = [run for runner in runners for run in runner.suspects()]
            if len(suspects) == 1:
                suspects[0].runner.killed(suspects[0].run, death)
            elif suspects:
                for suspect in suspects:
                    suspect.runner.remove(suspect.run)
                    suspect.run.start_again()
                    self.dispatcher.rerun_alone(suspect.run)
            else:
                for runner in unloaded:
                    runner.load_failed(death)
        for runner in runners:
            runner.start_again()
        if self.alone and self.idle:
            self.leave()
