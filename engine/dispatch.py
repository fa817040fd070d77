"""Brings runs to cells: one cell a project, one isolate a version, one batch at a time.

Path:   events, api.hot -> Dispatcher.submit -> House (cell) -> Runner (isolate) -> finish
Never:  loses a run: when a cell dies its runs start again, but for the one that killed it.

While an isolate works on a batch, whatever arrives for it gathers and goes with the next one; a
run that finds the isolate idle leaves at once.
"""

import asyncio
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import msgspec
import structlog

from engine.catalogue import Version
from engine.clock import Clock
from engine.run import Run
from runtimes.contract import (
    ABORT,
    ANSWER,
    BATCH_MESSAGES_MAX,
    START,
    DoneStatus,
    GuestError,
    LimitHit,
    Outcome,
    ToCell,
)
from sandbox.supervisor import Cell, Death, Sandbox, SandboxError

SWEEP_MS: Final = 20  # how late a wall limit may be noticed
STUCK_MS: Final = 250  # an isolate that holds a batch this long past a wall limit is killed
LOSSES_MAX: Final = 5  # cells that may die under a run before it is given up
RETRY_S: Final = 1.0  # when no cell can be had, queued runs wait this long for the next try
LOAD_MS: Final = 15_000  # a cell that has not loaded a version by then is killed
QUARANTINE_MS: Final = 60_000  # a version that killed a cell has one of its own for this long
ALONE_MAX: Final = 2  # suspects of a cell's death that run at a time, each in a cell of its own
CLASSIC_HANDLERS: Final = frozenset({"trigger", "main"})
INTERLEAVED_MAX: Final = 256  # runs in one isolate at a time
ISOLATES_MAX: Final = 150  # in one cell: each takes about 3 MB of its RLIMIT_DATA, 1 MB of it real
_log = structlog.get_logger()


class _Done(msgspec.Struct, array_like=True, tag=0):
    run: int
    status: DoneStatus
    value: msgspec.Raw


class _Call(msgspec.Struct, array_like=True, tag=1):
    run: int
    call: int
    operation: str
    arguments: msgspec.Raw


class _Log(msgspec.Struct, array_like=True, tag=2):
    run: int
    lines: list[tuple[str, int, str]]
    dropped: int


class _Stop(msgspec.Struct):
    run: int
    outcome: Outcome
    limit: LimitHit | None
    log: list[str]


class _Thrown(msgspec.Struct):
    name: str
    message: str
    stack: str


_ENDED_BY_GUEST: Final = frozenset({Outcome.SUCCEEDED, Outcome.FAILED, Outcome.OUTPUT_EXCEEDED})
_MESSAGES: Final = msgspec.json.Decoder(list[_Done | _Call | _Log])
_STOP: Final = msgspec.json.Decoder(_Stop)
_THROWN: Final = msgspec.json.Decoder(_Thrown)
_encode: Final = msgspec.json.encode

Answer = Callable[[bool, bytes], None]


class Broker(Protocol):
    """Port: answers host calls. Adapter: `hostcalls.broker`."""

    def handle(self, run: Run, call: int, operation: str, arguments: bytes, answer: Answer) -> None:
        """Check and do one host call; `answer(ok, json)` now or later, exactly once.

        Never raises for what the guest sent. May end the run through `Run.limit` by answering
        with `LimitReached`.
        """
        ...


class LimitReached(Exception):
    """A host call took the run over a limit; the dispatcher ends the run with it."""

    def __init__(self, outcome: Outcome, limit: LimitHit) -> None:
        self.outcome = outcome
        self.limit = limit
        super().__init__(f"{limit.name}: {limit.used} of {limit.value}")


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
    ) -> None:
        self.sandbox = sandbox
        self.broker = broker
        self.finish = finish
        self.on_log = on_log
        self.clock = clock
        self._cells_max = cells_max
        self._houses: dict[str, House] = {}  # in order of use, the least recently used first
        self._runners: dict[Version, Runner] = {}  # those in project cells
        self._quarantined: dict[str, int] = {}  # version id -> until, ms
        self._suspects: deque[Run] = deque()  # wait to run alone
        self._sweeper: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.inflight = 0
        self.cold_starts_count = 0
        self.lost_cells_count = 0
        self.closed = False

    @property
    def busy_cells(self) -> int:
        return sum(not house.idle for house in self._houses.values())

    def submit(self, run: Run) -> None:
        """Take a run; `finish(run)` is called once it has ended, whatever happens."""
        self.inflight += 1
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_MS / 1000, self._sweep)
        runner = self._runners.get(run.version)
        if runner is None or run.version.id in self._quarantined:
            runner = self._runner(run.version)
        runner.add(run)

    def end(self, run: Run) -> None:
        """The run has its outcome: hand it on."""
        run.ended_ns = time.monotonic_ns()
        self.inflight -= 1
        self.finish(run)

    def retire(self, version: Version) -> None:
        """The version is no longer live: its isolate goes as soon as nothing runs in it."""
        for house in tuple(self._houses.values()):
            house.retire(version)

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
            house = House(self, f"alone:{run.execution_id}:{run.losses}", alone=True)
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
            own = self._houses.get(f"quarantine:{version.id}")
            if own is not None and own.idle:
                own.leave()
        key = version.project_id if until is None else f"quarantine:{version.id}"
        house = self._houses.pop(key, None) or House(self, key)
        self._houses[key] = house  # last: the most recently used
        self._evict()
        runner = house.runner(version)
        if until is None:
            self._runners[version] = runner
        return runner

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
        now_ns = time.monotonic_ns()
        for house in tuple(self._houses.values()):
            house.sweep(now_ns)
        busy = self.inflight > 0 and not self.closed
        self._sweeper = self._loop.call_later(SWEEP_MS / 1000, self._sweep) if busy else None


class House:
    """One cell and the isolates in it; survives the cell, which is replaced when it dies."""

    def __init__(self, dispatcher: Dispatcher, key: str, *, alone: bool = False) -> None:
        self.dispatcher = dispatcher
        self.key = key
        self.alone = alone
        self._cell: Cell | None = None
        self._starting: asyncio.Task[None] | None = None
        self._runners: dict[int, Runner] = {}  # by isolate
        self._by_version: dict[Version, Runner] = {}
        self._stop: tuple[Runner, _Stop] | None = None

    @property
    def idle(self) -> bool:
        return all(runner.idle for runner in self._by_version.values())

    def runner(self, version: Version) -> "Runner":
        """Return the version's runner, made now if need be."""
        return self._by_version.get(version) or Runner(version, self)

    def enter(self, runner: "Runner") -> None:
        self._by_version[runner.version] = runner

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
        version = runner.version
        runner.isolate = self._cell.next_isolate()
        runner.used_ns = time.monotonic_ns()
        self._runners[runner.isolate] = runner
        request = b'{"program":%b,"bindings":%b,"memory_mb":%d,"now_ms":%d}' % (
            version.program.encode(),
            _encode(version.bindings),
            max(version.limits(handler).memory_mb for handler in version.handlers),
            self.dispatcher.clock(),
        )
        self.dispatcher.cold_starts_count += 1
        self._cell.send(ToCell.LOAD, runner.isolate, request)

    def send(self, isolate: int, batch: bytes) -> None:
        assert self._cell is not None
        self._cell.send(ToCell.BATCH, isolate, batch)

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
        idle = [runner for runner in self._runners.values() if runner.idle]
        if idle:
            self.unload(min(idle, key=lambda runner: runner.used_ns))

    def kill(self) -> None:
        if self._cell is not None:
            self._cell.kill()

    def sweep(self, now_ns: int) -> None:
        for runner in tuple(self._by_version.values()):
            runner.sweep(now_ns)

    def cancel_all(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
        for runner in tuple(self._by_version.values()):
            runner.cancel_all()

    async def _start(self) -> None:
        try:
            cell = await self.dispatcher.sandbox.acquire()
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
            runner.on_output(cpu_ns, peak_bytes, _MESSAGES.decode(messages))

    def on_built(self, isolate: int, program: bytes) -> None:
        raise ValueError("a program that nobody asked for")

    def on_loaded(self, isolate: int, answer: bytes) -> None:
        runner = self._runners.get(isolate)
        if runner is not None:
            runner.on_loaded()

    def on_refused(self, isolate: int, error: GuestError) -> None:
        runner = self._runners.get(isolate)
        if runner is not None:
            runner.fail_all(error)
            self.unload(runner)

    def on_stopped(self, isolate: int, stop: bytes) -> None:
        runner = self._runners.get(isolate)
        if runner is not None:
            self._stop = (runner, _STOP.decode(stop))

    def on_death(self, death: Death) -> None:
        """Find who killed the cell; everybody else starts again."""
        self.dispatcher.lost_cells_count += 1
        self._cell = None
        self._runners.clear()
        stop, self._stop = self._stop, None
        runners = tuple(self._by_version.values())
        unloaded = [runner for runner in runners if runner.loading]
        for runner in runners:
            runner.hold()
        if stop is not None:
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


class _Suspect:
    __slots__ = ("run", "runner")

    def __init__(self, runner: "Runner", run: Run) -> None:
        self.runner = runner
        self.run = run


class Runner:
    """One version in one isolate: the runs that wait for it and the runs inside."""

    def __init__(self, version: Version, house: House) -> None:
        self.version = version
        self.house = house
        self.isolate = 0
        self.loaded = False
        self.loading = False
        self.used_ns = 0
        self._waiting: deque[Run] = deque()
        self._answers: deque[tuple[int, bytes]] = deque()  # (run, message); run 0: send it anyway
        self._runs: dict[int, Run] = {}
        self._last_number = 0
        self._batch: tuple[int, ...] | None = None  # runs in the batch that is out; None: idle
        house.enter(self)

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._runs

    def add(self, run: Run) -> None:
        self._waiting.append(run)
        if self.loaded:
            if self._batch is None:
                self._send()
        elif not self.loading:
            run.cold = True
            self.loading = True
            self.house.load(self)

    def on_loaded(self) -> None:
        self.loaded = True
        self.loading = False
        self._send()

    def on_output(  # noqa: C901 - one branch for each kind of message
        self, cpu_ns: int, peak_bytes: int, messages: Iterable[_Done | _Call | _Log]
    ) -> None:
        batch, self._batch = self._batch, None
        if batch is None:
            raise ValueError("an output without a batch")
        # V8 tells the CPU time of the batch; its runs share it evenly.
        share_ns = cpu_ns // max(1, len(batch))
        for number in batch:
            run = self._runs.get(number)
            if run is not None:
                run.cpu_ns += share_ns
                if len(batch) == 1:
                    run.own_cpu_ns += cpu_ns
                run.peak_bytes = peak_bytes
        for message in messages:
            run = self._runs.get(message.run)
            if run is None:
                continue  # ended here already: its wall time ran out, or a limit of the engine
            if type(message) is _Done:
                self._done(run, message)
            elif type(message) is _Call:
                self._call(run, message)
            elif type(message) is _Log:
                self._take_log(run, message.lines, message.dropped)
        for number in batch:
            run = self._runs.get(number)
            if run is not None and run.own_cpu_ns > run.limits.cpu_ms * 1_000_000:
                # In many short steps, which the cell's watchdog sees one by one. Only what it used
                # with nobody beside it counts here: no run is ended for its neighbour's CPU.
                used_ms = run.own_cpu_ns // 1_000_000
                hit = LimitHit(name="cpu_ms", value=run.limits.cpu_ms, used=used_ms)
                self._end(run, Outcome.CPU_EXCEEDED, limit=hit)
        if self._batch is None and (self._waiting or self._answers):
            self._send()
        elif self.house.alone or not self.version.live:
            self.leave_if_over()

    def sweep(self, now_ns: int) -> None:
        """End runs whose wall time is over; kill an isolate that does not come back."""
        stuck = False
        if self.loading and self.isolate and now_ns - self.used_ns > LOAD_MS * 1_000_000:
            self.house.kill()
        for run in tuple(self._runs.values()):
            over_ns = now_ns - run.started_ns - run.limits.wall_ms * 1_000_000
            if over_ns <= 0:
                continue
            if self._batch is None:
                self._end_by_wall(run, now_ns)
            elif over_ns > STUCK_MS * 1_000_000:
                stuck = True
        if stuck and now_ns - self.used_ns > STUCK_MS * 1_000_000:
            self.house.kill()

    def suspects(self) -> list[_Suspect]:
        """Return the runs that were on the thread when the cell died."""
        numbers = self._batch or ()
        runs = [self._runs[number] for number in numbers if number in self._runs]
        return [_Suspect(self, run) for run in runs]

    def stopped(self, stop: _Stop, *, loading: bool) -> None:
        """The cell's watchdog named the run that went over its limit."""
        run = self._runs.get(stop.run)
        if run is None:
            if loading:
                hit = stop.limit
                figure = f": {hit.name} {hit.value}, used {hit.used}" if hit is not None else ""
                message = f"{stop.outcome} while the version was loaded{figure}"
                self.fail_all(GuestError(name="LoadError", message=message))
            return
        for line in stop.log[: run.limits.log_lines]:
            level, _, text = line.partition(" ")
            self._take_log(run, [(level, run.clock_ms, text)], 0)
        self.house.dispatcher.quarantine(self.version)
        self._end(run, stop.outcome, limit=stop.limit)

    def killed(self, run: Run, death: Death) -> None:
        """This run alone was on a thread when the cell died without a word."""
        self.house.dispatcher.quarantine(self.version)
        over_ns = time.monotonic_ns() - run.started_ns - run.limits.wall_ms * 1_000_000
        if over_ns > 0:
            self._end_by_wall(run, time.monotonic_ns())
        elif death.out_of_memory:
            limit_mb = run.limits.memory_mb
            used_mb = max(limit_mb, death.peak_bytes // (1024 * 1024))
            hit = LimitHit(name="memory_mb", value=limit_mb, used=used_mb)
            self._end(run, Outcome.MEMORY_EXCEEDED, limit=hit)
        elif run.losses + 1 < LOSSES_MAX and (
            death.signal == signal.SIGKILL or not self.house.alone
        ):
            self.remove(run)
            run.start_again()
            self.house.dispatcher.rerun_alone(run)  # it may not have been its fault
        else:
            how = f"signal {death.signal}" if death.signal else f"exit status {death.exit_code}"
            message = f"the cell died under this run ({how})"
            self._end(run, Outcome.CRASHED, error=GuestError(name="Crash", message=message))

    def hold(self) -> None:
        """The cell is gone: take runs in, send nothing, until `start_again`."""
        self.loaded = False
        self.loading = True

    def load_failed(self, death: Death) -> None:
        if death.signal == signal.SIGKILL:
            return  # not its own doing: it is loaded again
        how = "ran out of memory" if death.out_of_memory else "died"
        message = f"the cell {how} while the version was loaded"
        self.fail_all(GuestError(name="LoadError", message=message))

    def remove(self, run: Run) -> None:
        self._runs.pop(run.number, None)

    def start_again(self) -> None:
        """The cell is gone: all that was inside waits again, before what came later."""
        self.loaded = self.loading = False
        self._batch = None
        self._answers.clear()
        runs, self._runs = self._runs, {}
        for run in reversed(runs.values()):
            run.start_again()
            self._waiting.appendleft(run)
        if self._waiting:
            self.loading = True
            self.house.load(self)
        else:
            self.house.unload(self)

    def leave_if_over(self) -> None:
        """Give the isolate up when nothing runs in it and nothing new will."""
        over = self.house.alone or not self.version.live
        if over and self.idle and self._batch is None and not self.loading:
            self.house.unload(self)

    def fail_all(self, error: GuestError, *, keep_queued: bool = False) -> None:
        """End what waits; `keep_queued`: only what somebody waits for, the rest can wait longer."""
        waiting, self._waiting = self._waiting, deque()
        self.loading = keep_queued
        for run in waiting:
            if keep_queued and run.queued:
                self._waiting.append(run)
                continue
            run.outcome, run.error = Outcome.FAILED, error
            self.house.dispatcher.end(run)

    def cancel_all(self) -> None:
        for run in (*self._waiting, *self._runs.values()):
            run.outcome = Outcome.CANCELLED
            if not run.queued:
                self.house.dispatcher.end(run)
        self._waiting.clear()
        self._runs.clear()

    def _send(self) -> None:
        """Send what waits as one batch: answers first, they free runs."""
        parts: list[bytes] = []
        numbers: list[int] = []
        answers, waiting, runs = self._answers, self._waiting, self._runs
        while answers and len(parts) < BATCH_MESSAGES_MAX:
            number, text = answers.popleft()
            if number in runs or number == 0:
                parts.append(text)
                numbers.append(number)
        room = min(BATCH_MESSAGES_MAX - len(parts), INTERLEAVED_MAX - len(runs))
        if waiting and room > 0:
            now_ms, now_ns = self.house.dispatcher.clock(), time.monotonic_ns()
            for _ in range(min(room, len(waiting))):
                run = waiting.popleft()
                self._last_number = number = self._last_number + 1
                runs[number] = run
                run.number = number
                run.started_ns = now_ns
                run.clock_ms = run.guest_ms = now_ms
                run.seed = os.urandom(8).hex()  # a secret of the run: its id is public
                parts.append(_start(number, run))
                numbers.append(number)
        if not parts:
            return
        self._batch = tuple(numbers)
        self.used_ns = time.monotonic_ns()
        self.house.send(self.isolate, b"[" + b",".join(parts) + b"]")

    def _done(self, run: Run, message: _Done) -> None:
        if run.open_effects:
            run.awaits_effects = lambda: self._done(run, message)
            return
        value = bytes(message.value)
        if message.status is DoneStatus.OK and len(value) <= run.limits.output_bytes:
            run.result = value
            self._end(run, Outcome.SUCCEEDED)
        elif message.status is DoneStatus.THREW:
            thrown = _THROWN.decode(value)
            error = GuestError(name=thrown.name, message=thrown.message, stack=thrown.stack)
            self._end(run, Outcome.FAILED, error=error)
        else:
            used = len(value) if message.status is DoneStatus.OK else int(value)
            hit = LimitHit(name="output_bytes", value=run.limits.output_bytes, used=used)
            self._end(run, Outcome.OUTPUT_EXCEEDED, limit=hit)

    def _call(self, run: Run, message: _Call) -> None:
        number, call, clock = message.run, message.call, self.house.dispatcher.clock

        def answer(ok: bool, value: bytes) -> None:
            if self._runs.get(number) is not run:
                return
            run.guest_ms = clock()
            text = b"[%d,%d,%d,%d,%b,%b]" % (
                ANSWER, number, call, run.guest_ms, b"true" if ok else b"false", value,
            )  # fmt: skip
            self._answers.append((number, text))
            if run.awaits_effects is not None and not run.open_effects:
                run.awaits_effects()
            if self._batch is None and self.loaded:
                self._send()

        held = self._batch is None
        if held:
            self._batch = ()  # answers that come at once wait until the whole output is read
        try:
            self.house.dispatcher.broker.handle(
                run, call, message.operation, bytes(message.arguments), answer
            )
        except LimitReached as reached:
            self._end(run, reached.outcome, limit=reached.limit)
        if held:
            self._batch = None

    def _take_log(self, run: Run, lines: list[tuple[str, int, str]], dropped: int) -> None:
        kept = []
        limits = run.limits
        for line in lines:
            size = len(line[2])
            if len(run.log) >= limits.log_lines or run.log_bytes + size > limits.log_bytes + 64:
                dropped += 1
                continue
            run.log.append(line)
            run.log_bytes += size
            kept.append(line)
        run.log_dropped += dropped
        self.house.dispatcher.on_log(run, kept)

    def _end_by_wall(self, run: Run, now_ns: int) -> None:
        used = (now_ns - run.started_ns) // 1_000_000
        hit = LimitHit(name="wall_ms", value=run.limits.wall_ms, used=used)
        message = f"Maximum execution time of {run.limits.wall_ms} ms exceeded"
        if run.handler in CLASSIC_HANDLERS:
            message += "; did every path call the callback?"
        error = GuestError(name="TimeoutError", message=message)
        self._end(run, Outcome.TIMED_OUT, limit=hit, error=error)

    def _end(
        self,
        run: Run,
        outcome: Outcome,
        *,
        limit: LimitHit | None = None,
        error: GuestError | None = None,
    ) -> None:
        if self._runs.pop(run.number, None) is None:
            return
        if outcome not in _ENDED_BY_GUEST and self.loaded:
            self._answers.append((0, b"[%d,%d]" % (ABORT, run.number)))
        run.outcome, run.limit, run.error = outcome, limit, error
        self.house.dispatcher.end(run)


def _start(number: int, run: Run) -> bytes:
    limits = run.limits
    deadline_ms = run.clock_ms + limits.wall_ms
    return b'[%d,%d,"%s",%d,"%s",%d,%d,%d,%d,["%s",%d,%d,%d,"%s",%d],%s]' % (
        START, number, run.handler.encode(), run.clock_ms, run.seed.encode(), limits.cpu_ms,
        limits.output_bytes, limits.log_lines, limits.log_bytes, run.execution_id.encode(),
        run.version.number, run.attempt, deadline_ms, run.root_id.encode(), run.depth, run.input,
    )  # fmt: skip
