"""Brings runs to cells: one cell a project, one isolate a version, one batch at a time.

Path:   events, api.hot -> Dispatcher.submit -> House (cell) -> runner (isolate) -> finish
Never:  loses a run: when a cell dies its runs start again, but for the one that killed it.

While an isolate works on a batch, whatever arrives for it gathers and goes with the next one; a
run that finds the isolate idle leaves at once.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Final, Protocol

import msgspec
import structlog

from engine.admission import Admission
from engine.batches import as_batch
from engine.catalogue import Version
from engine.clock import Clock
from engine.ends import attempt, tell_end
from engine.errors import EngineError
from engine.messages import STOP_BYTES_MAX, TOLD_BYTES_MAX, Stop, clipped, read_stop
from engine.run import Run
from engine.runner import INSTANCES_MAX, Broker, Runner, suspects_of
from engine.store.database import StoreFailed
from runtimes.contract import (
    MIB,
    CellKind,
    FromCell,
    GuestError,
    Outcome,
    Runtime,
    ToCell,
    packed,
)
from sandbox.supervisor import Cell, Death, Sandbox, SandboxError

SWEEP_MS: Final = 20  # how late a wall limit may be noticed
RETRY_S: Final = 1.0  # when no cell can be had, queued runs wait this long for the next try
QUARANTINE_MS: Final = 60_000  # a version that killed a cell has one of its own for this long
ALONE_MAX: Final = 2  # suspects of one project that run at a time, each in a cell of its own
ALONE_CELLS_MAX: Final = 8  # ... of all projects
QUARANTINE_CELLS_MAX: Final = 4  # of one project; further versions in quarantine share them
LOADED_BYTES_MAX: Final = MIB  # the handlers, and what the file logged: 100 lines of 1,000 units
LOADS_AT_ONCE: Final = 4  # in one cell, which does one at a time: the others' programs wait here
ISOLATES_MAX: Final = 150  # in one cell: each takes about 3 MB of its RLIMIT_DATA, 1 MB of it real
_log = structlog.get_logger()
_encode: Final = msgspec.json.encode


class Programs(Protocol):
    """Port: what a cell loads to run a version. Adapter: `engine.programs`."""

    def at_hand(self, version: Version, *, hardened: bool) -> bytes | None:
        """Return the program, for hardened cells or the others, if that needs no waiting."""
        ...

    async def program(self, version: Version, *, hardened: bool) -> bytes:
        """Return it from wherever it is.

        Raises:
            EngineError: it is gone, or does not compile any more.
        """
        ...

    async def rebuild(self, version: Version, *, hardened: bool) -> bytes:
        """Compile it anew: a cell has refused the one there is.

        Raises:
            EngineError: as for `program`.
        """
        ...


class Guard(Protocol):
    """Port: knows whom to hold back for what it did. Adapter: `engine.breakers`."""

    def holds(self, run: Run) -> bool:
        """Say whether the run must not begin now; then it is the guard's."""
        ...


class Dispatcher:
    """All runs in flight on this node."""

    guard: Guard  # set by `wiring`: the two know each other

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
        admission: Callable[[Callable[[list[Run]], None]], Admission],
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
        self.admission = admission(self._place_all)
        self.inflight = 0
        self.closed = False

    def houses(self) -> "dict[Cell, House]":
        """Return every house that has a cell, by its cell."""
        return {house.cell: house for house in self._houses.values() if house.cell is not None}

    @property
    def busy_cells(self) -> int:
        return sum(not house.idle for house in self._houses.values())

    def submit(self, run: Run) -> None:
        """Take a run; `finish(run)` is called once it has ended, whatever happens."""
        if run.handler == "queue" and not run.messages:
            run.input = as_batch(run)
        self._take(run)

    def _take(self, run: Run) -> None:
        if not run.queued and (error := self.admission.refusal(run)) is not None:
            run.refused = error
            tell_end(run)
            return
        if self.guard.holds(run):
            return
        self._count_in()
        if self.admission.admit(run):
            self.place(run)

    def _count_in(self) -> None:
        self.inflight += 1
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_MS / 1000, self._sweep)

    def _count_out(self, run: Run) -> None:
        self.inflight -= 1
        self.admission.ended(run)

    def try_alone(self, run: Run) -> None:
        """Run it in a cell where nothing else is, whatever its version is held back for."""
        self._count_in()
        self.rerun_alone(run)

    def sift(self, version_id: str) -> None:
        """Ask the guard again about every run of a version that waits and has not begun."""
        for run in tuple(self._suspects):
            if run.version.id == version_id and not run.trial and self.guard.holds(run):
                self._suspects.remove(run)
                self._count_out(run)
        for house in tuple(self._houses.values()):
            if house.alone:  # it is a suspect, or a trial
                continue
            for run in house.take_waiting(version_id):
                if self.guard.holds(run):
                    self._count_out(run)
                else:
                    self.place(run)
        for run in self.admission.shares.take(version_id):  # in the order in which they came
            if self.guard.holds(run):
                self._count_out(run)
            elif self.admission.admit(run):
                self.place(run)

    def place(self, run: Run) -> None:
        """Put a run that has not begun where its version runs now."""
        self._runner_of(run.version).add(run)

    def _place_all(self, runs: list[Run]) -> None:
        by_version: dict[Version, list[Run]] = {}
        for run in runs:
            by_version.setdefault(run.version, []).append(run)
        for version, group in by_version.items():
            self._runner_of(version).add_all(group)

    def _runner_of(self, version: Version) -> "Runner":
        runner = self._runners.get(version)
        if runner is None or version.id in self._quarantined:
            runner = self._runner(version)
        return runner

    def rehouse(self, project_id: str) -> None:
        """The project's isolation has changed: what has not begun, begins in the other cells.

        What is inside of the old ones ends there, and then they go.
        """
        for version in tuple(self._runners):
            if version.project_id == project_id:
                del self._runners[version]
        for house in tuple(self._houses.values()):
            if house.project_id == project_id:
                house.move_out()

    def is_outdated(self, house: "House") -> bool:
        """Say whether the house's cell is of another kind than its project's code runs in now."""
        return house.kind.hardened != self._is_hardened(house.project_id)

    def cancel(self, run: Run) -> None:
        """End a run as soon as its isolate can be told; nothing that it has done will be stored."""
        if self.admission.shares.forget(run):
            run.outcome = Outcome.CANCELLED
            self.end(run)
            return
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
        self._count_out(run)
        attempt("run_not_finished", run.execution_id, self.finish, run)

    def retire(self, version: Version) -> None:
        """The version is no longer live: its isolate goes as soon as nothing runs in it."""
        for house in tuple(self._houses.values()):
            house.retire(version)

    def quarantined(self) -> dict[str, int]:
        """Return which versions have a cell of their own for having killed one: until when, ms."""
        return {of: until for of, until in self._quarantined.items() if self._is_apart(of)}

    def _is_apart(self, version_id: str) -> bool:
        """Say whether its time in quarantine lasts; a clock set back makes it no longer."""
        left_ms = self._quarantined.get(version_id, 0) - self.clock()
        return 0 < left_ms <= QUARANTINE_MS

    def quarantine(self, version: Version) -> None:
        self._quarantined = self.quarantined() | {version.id: self.clock() + QUARANTINE_MS}

    def rerun_alone(self, run: Run) -> None:
        """Start a run again in a cell where nothing else is: it may have killed the last one."""
        self._suspects.append(run)
        self._next_suspect()

    def _next_suspect(self) -> None:
        alone = Counter(house.project_id for house in self._houses.values() if house.alone)
        for run in tuple(self._suspects):
            project_id = run.version.project_id
            if alone.total() >= ALONE_CELLS_MAX or alone[project_id] >= ALONE_MAX:
                continue
            self._suspects.remove(run)
            kind = self._kind(run.version)
            key = f"alone:{kind}:{run.execution_id}:{run.losses}"
            house = House(self, key, kind, project_id, alone=True)
            self._houses[house.key] = house
            Runner(run.version, house).add(run)
            alone[project_id] += 1

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
        waiting = [*self.admission.shares.clear(), *self._suspects]
        self._suspects.clear()
        for run in waiting:
            run.outcome = Outcome.CANCELLED
            if not run.queued:
                self.end(run)

    def _runner(self, version: Version) -> "Runner":
        kind = self._kind(version)
        is_apart = self._is_apart(version.id)
        if not is_apart:
            self._quarantined.pop(version.id, None)
            alone = self._houses.get(f"quarantine:{kind}:{version.id}")
            if alone is not None and alone.idle:
                alone.leave()
        own = f"{kind}:{version.project_id}"
        key = self._quarantine_key(version, kind) if is_apart else own
        house = self._houses.pop(key, None) or House(self, key, kind, version.project_id)
        self._houses[key] = house  # last: the most recently used
        self._evict()
        runner = house.runner(version)
        if not is_apart:
            self._runners[version] = runner
        return runner

    def _quarantine_key(self, version: Version, kind: CellKind) -> str:
        """Return where the version is in quarantine: by itself, unless its project has too many."""
        own = f"quarantine:{kind}:{version.id}"
        theirs = {
            key: house
            for key, house in self._houses.items()
            if house.project_id == version.project_id and key.startswith(f"quarantine:{kind}:")
        }
        if own in theirs or len(theirs) < QUARANTINE_CELLS_MAX:
            return own
        return next((key for key, house in theirs.items() if house.has(version)), min(theirs))

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
            attempt("house_not_swept", house.key, house.sweep, now_ns)
        for run in self.admission.overdue(now_ns):
            self.inflight -= 1
            tell_end(run)  # that it does not run: nothing of it is recorded


class House:
    """One cell and the isolates in it; survives the cell, which is replaced when it dies."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        key: str,
        kind: CellKind,
        project_id: str,
        *,
        alone: bool = False,
    ) -> None:
        self.dispatcher = dispatcher
        self.key = key
        self.kind = kind
        self.project_id = project_id
        self.alone = alone
        self._left = False
        self._cell: Cell | None = None
        self._starting: asyncio.Task[None] | None = None
        self._fetching: dict[Runner, asyncio.Task[None]] = {}
        self._rebuilt: set[Version] = set()  # whose program a cell of this house has refused
        self._runners: dict[int, Runner] = {}  # by isolate
        self._by_version: dict[Version, Runner] = {}
        self._owed: set[int] = set()  # isolates whose loading the cell has not answered
        self._loads: deque[tuple[Runner, bytes]] = deque()  # programs that wait for their turn
        self._stop: tuple[Runner, Stop] | None = None

    @property
    def idle(self) -> bool:
        return all(runner.idle for runner in self._by_version.values())

    @property
    def cell(self) -> Cell | None:
        return self._cell

    @property
    def used_ns(self) -> int:
        """When it was last given something to do, of the monotonic clock."""
        return max((runner.used_ns for runner in self._by_version.values()), default=0)

    @property
    def heard_ns(self) -> int:
        return 0 if self._cell is None else self._cell.heard_ns

    @property
    def outdated(self) -> bool:
        return self.dispatcher.is_outdated(self)

    def move_out(self) -> None:
        """Have what has not begun here begin where the project's code runs now."""
        if not self.outdated:
            return
        for runner in tuple(self._by_version.values()):
            runner.move_out()
        if not self._by_version and not self._left:
            self.leave()

    def runner(self, version: Version) -> "Runner":
        """Return the version's runner, made now if need be."""
        return self._by_version.get(version) or Runner(version, self)

    def has(self, version: Version) -> bool:
        return version in self._by_version

    def enter(self, runner: "Runner") -> None:
        self._by_version[runner.version] = runner

    def cancel(self, run: Run) -> bool:
        runner = self._by_version.get(run.version)
        return runner is not None and runner.cancel(run)

    def take_waiting(self, version_id: str) -> list[Run]:
        """Take out, and return, what waits for a version and has not begun."""
        runners = [one for one in self._by_version.values() if one.version.id == version_id]
        return [run for runner in runners for run in runner.take_waiting()]

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
        runner.isolate = 0
        programs = self.dispatcher.programs
        program = programs.at_hand(runner.version, hardened=self.kind.hardened)
        if program is None:
            self._fetch(runner)
        else:
            self._send_program(runner, program)

    def _send_program(self, runner: "Runner", program: bytes) -> None:
        if self._cell is None:
            return  # the next cell loads every runner
        if len(self._owed) >= LOADS_AT_ONCE:
            self._loads.append((runner, program))
            return
        if len(self._runners) >= ISOLATES_MAX:
            self._unload_least_used()
        runner.isolate = self._cell.next_isolate()
        self._owed.add(runner.isolate)
        runner.used_ns = time.monotonic_ns()
        self._runners[runner.isolate] = runner
        header = self._load_header(runner.version)
        self._cell.send(ToCell.LOAD, runner.isolate, packed(header, program))

    def _load_answered(self, isolate: int) -> None:
        """Take that the cell has loaded a version, or refused to, and go on with the next."""
        if isolate not in self._owed:
            raise ValueError("an answer to a load that nobody asked for")
        self._owed.remove(isolate)
        while self._loads and len(self._owed) < LOADS_AT_ONCE:
            runner, program = self._loads.popleft()
            is_here = self._by_version.get(runner.version) is runner
            if is_here and runner.loading and not runner.isolate:
                self._send_program(runner, program)

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
                "hardened": self.kind.hardened,
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
        get = programs.rebuild if anew else programs.program
        while True:
            try:
                program = await get(version, hardened=self.kind.hardened)
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

    def instances_room(self, each_bytes: int) -> int:
        runners = self._by_version.values()
        free_bytes = self.dispatcher.guests_bytes - sum(runner.held_bytes for runner in runners)
        free_count = INSTANCES_MAX - sum(runner.inside_count for runner in runners)
        return max(0, min(free_bytes // each_bytes, free_count))

    def unload(self, runner: "Runner") -> None:
        self._by_version.pop(runner.version, None)
        self.dispatcher.runner_gone(runner)
        if self._runners.pop(runner.isolate, None) is not None and self._cell is not None:
            self._cell.send(ToCell.UNLOAD, runner.isolate)
        if (self.alone or self.outdated) and not self._by_version:
            self.leave()

    def leave(self) -> None:
        """Give the cell up; only called when nothing runs in it."""
        self._left = True
        self.dispatcher.forget(self)
        for runner in tuple(self._by_version.values()):
            self.dispatcher.runner_gone(runner)
        self._by_version.clear()
        self._runners.clear()
        cell, self._cell = self._cell, None
        if cell is not None:
            cell.listener = None
            self.dispatcher.admission.usage.cell_ended(cell)
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
        if self._left:
            cell.kill()
            return
        self._cell = cell
        self.dispatcher.admission.usage.cell_begun(self.project_id, cell)
        cell.listener = self
        for runner in tuple(self._by_version.values()):
            self.load(runner)

    # sandbox.supervisor.CellListener
    def room_for(self, kind: str, isolate: int) -> int:
        """Return the most that the cell can have to say so; see the port."""
        runner = self._runners.get(isolate)
        if kind == FromCell.OUTPUT:
            return -1 if runner is None else runner.output_room
        if kind == FromCell.LOADED:
            return LOADED_BYTES_MAX if isolate in self._owed else -1
        if kind == FromCell.REFUSED:
            return TOLD_BYTES_MAX if isolate in self._owed else -1
        if kind == FromCell.STOPPED:
            at_work = isolate in self._owed or (runner is not None and runner.output_room >= 0)
            return STOP_BYTES_MAX if at_work else -1
        return -1

    def on_output(
        self, isolate: int, cpu_ns: int, peak_bytes: int, messages: bytes
    ) -> Iterator[None]:
        return self._runners[isolate].on_output(cpu_ns, peak_bytes, messages)

    def on_built(self, isolate: int, program: bytes) -> None:
        raise ValueError("a program that nobody asked for")

    def on_loaded(self, isolate: int, answer: bytes) -> None:
        self._load_answered(isolate)
        runner = self._runners.get(isolate)
        if runner is not None:  # else it has been given up meanwhile
            self._rebuilt.discard(runner.version)
            runner.on_loaded()

    def on_refused(self, isolate: int, error: GuestError) -> None:
        self._load_answered(isolate)
        runner = self._runners.get(isolate)
        if runner is None:
            return
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
        runner.fail_all(clipped(error))
        self.unload(runner)

    def on_stopped(self, isolate: int, stop: bytes) -> None:
        runner = self._runners.get(isolate)
        if runner is not None:
            self._stop = (runner, read_stop(stop))

    def on_death(self, death: Death) -> None:
        """Find who killed the cell; everybody else starts again."""
        self.dispatcher.admission.usage.cell_ended(self._cell, death.cpu_ns)
        self._cell = None
        self._runners.clear()
        self._owed.clear()
        self._loads.clear()
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
            suspects = suspects_of(runners, death)
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
