"""One version in one isolate: the runs that wait for it, the runs inside, and how each ends.

Path:   dispatch -> Runner.add -> batch -> cell ... output -> broker, or the run's end -> dispatch
Never:  believes an isolate: a run that it does not hold, or that has ended, is passed over.
"""

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Final, Protocol

from engine.catalogue import Version
from engine.clock import Clock
from engine.events import check_text
from engine.messages import (
    LEVELS,
    MESSAGES_PER_RUN,
    Call,
    Done,
    LogLines,
    Message,
    Stop,
    Usage,
    abort_message,
    answer_message,
    messages_of,
    output_bytes_max,
    read_count,
    read_stopped,
    read_thrown,
    start_message,
)
from engine.run import Run
from runtimes.contract import (
    BATCH_MESSAGES_MAX,
    COUNT_MAX,
    MIB,
    DoneStatus,
    GuestError,
    LimitHit,
    Outcome,
    Runtime,
)
from sandbox.supervisor import TURN_NS, Death

STUCK_MS: Final = 250  # an isolate that holds a batch this long past a wall limit is killed
LOSSES_MAX: Final = 5  # cells that may die under a run, it alone, before it is given up
DEATHS_MAX: Final = 50  # ... that may die at all, whoever it was that killed them
LOAD_MS: Final = 15_000  # a cell that has not loaded a version by then is killed
CLASSIC_HANDLERS: Final = frozenset({"trigger", "main"})
BATCH_BYTES: Final = 4 * MIB  # a batch that has as much takes no more
ANSWER_BYTES_MAX: Final = 8 * MIB  # of one host call
INTERLEAVED_MAX: Final[Mapping[str, int]] = {  # runs in one isolate at a time
    Runtime.JAVASCRIPT: 256,
    Runtime.WASM: 32,  # each that waits has a thread, and its own memory
}
THREAD_BYTES: Final = 1664 * 1024  # of a run of WebAssembly: its stack, and what is around it
# Of WebAssembly in one cell: each has 4 GiB of its 2 TiB of addresses, those that are kept as well.
INSTANCES_MAX: Final = 300
BATCH_NS: Final = 50_000_000  # what the starts of a batch may take together, from experience
_GUESS_NS: Final = BATCH_NS  # of one run, as long as there is none: it goes alone
_TOO_LARGE: Final = (
    b'{"name":"RangeError","message":"the answer has more than 8 MiB; ask for less at once",'
    b'"code":"payload_too_large"}'
)
_TOO_MUCH_HELD: Final = (
    b'{"name":"RangeError","message":"too much at once: host calls of this run that are not '
    b'answered yet, or whose answers it has not taken, have more than 32 MiB; await some first",'
    b'"code":"payload_too_large"}'
)
ARGUMENTS_BYTES_MAX: Final = 8 * MIB  # of one host call: a fetch of 1 MiB, each byte escaped
HELD_BYTES_MAX: Final = 32 * MIB  # of a run: its arguments and answers that wait in the engine
ASKED_BYTES_MAX: Final = 512 * MIB  # of a run, all its calls: reading them is the engine's own time
PEAK_BYTES_MAX: Final = 4096 * MIB  # of a cell, far over what RLIMIT_DATA leaves any
_ENDED_BY_GUEST: Final = frozenset({Outcome.SUCCEEDED, Outcome.FAILED, Outcome.OUTPUT_EXCEEDED})

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


def spend_bytes(run: Run, size: int) -> None:
    """Count what a run wants to change, in bytes.

    Raises:
        LimitReached: it is more than a run may.
    """
    run.effect_bytes += size
    most = run.limits.effect_bytes
    if run.effect_bytes > most:
        hit = LimitHit(name="effect_bytes", value=most, used=run.effect_bytes)
        raise LimitReached(Outcome.EFFECTS_EXCEEDED, hit)


class Desk(Protocol):
    """Port: the dispatcher, as a runner needs it."""

    broker: Broker
    clock: Clock
    on_log: Callable[[Run, list[tuple[str, int, str]]], None]

    def end(self, run: Run) -> None:
        """The run has its outcome: hand it on."""
        ...

    def quarantine(self, version: Version) -> None:
        """The version killed a cell: it runs in one of its own for a while."""
        ...

    def rerun_alone(self, run: Run) -> None:
        """Start a run again in a cell where nothing else is."""
        ...

    def place(self, run: Run) -> None:
        """Put a run that has not begun where its version runs now."""
        ...


class Home(Protocol):
    """Port: the cell that a runner's isolate lives in. Adapter: `dispatch.House`."""

    alone: bool

    @property
    def outdated(self) -> bool:
        """Say whether the project's code runs in cells of another kind by now."""
        ...

    @property
    def heard_ns(self) -> int:
        """Return until when the cell was not heard because it had said so much: `Cell.heard_ns`."""
        ...

    @property
    def dispatcher(self) -> Desk: ...

    def enter(self, runner: "Runner") -> None: ...

    def load(self, runner: "Runner") -> None: ...

    def unload(self, runner: "Runner") -> None: ...

    def send(self, isolate: int, batch: bytes) -> None: ...

    def instances_room(self, each_bytes: int) -> int:
        """Return how many more runs of this size the cell's memory holds, as far as it is known."""
        ...

    def kill(self) -> None: ...


class Suspect:
    __slots__ = ("run", "runner")

    def __init__(self, runner: "Runner", run: Run) -> None:
        self.runner = runner
        self.run = run


class Runner:
    """One version in one isolate: the runs that wait for it and the runs inside."""

    def __init__(self, version: Version, house: Home) -> None:
        self.version = version
        self.house = house
        self.isolate = 0
        self.loaded = False
        self.loading = False
        self.used_ns = 0
        self._interleaved_max = INTERLEAVED_MAX[version.runtime]
        self._tells_usage = version.runtime is Runtime.WASM  # of each run, exactly
        self._waiting: deque[Run] = deque()
        self._answers: deque[tuple[int, bytes]] = deque()  # (run, message); run 0: send it anyway
        self._runs: dict[int, Run] = {}
        self._last_number = 0
        self._batch: tuple[int, ...] | None = None  # runs in the batch that is out; None: idle
        self._mean_ns = _GUESS_NS  # that a message took, of late
        # What a run holds while it is inside, of late: WebAssembly's.
        self._instance_bytes = THREAD_BYTES if self._tells_usage else 0
        self._load_deaths_count = 0
        house.enter(self)

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._runs

    @property
    def inside_count(self) -> int:
        return len(self._runs)

    @property
    def held_bytes(self) -> int:
        """Return the memory of the runs inside, as far as it is known."""
        return len(self._runs) * self._instance_bytes

    def add(self, run: Run) -> None:
        self._waiting.append(run)
        if self.loaded:
            if self._batch is None:
                self._send()
        elif not self.loading:
            run.cold = True
            self.loading = True
            self.house.load(self)

    def add_all(self, runs: list[Run]) -> None:
        """Take runs that came together, so that they leave together."""
        self._waiting.extend(runs[:-1])
        self.add(runs[-1])

    def on_loaded(self) -> None:
        if not self.loading:
            raise ValueError("a version that was not being loaded")
        self._load_deaths_count = 0
        self.loaded = True
        self.loading = False
        self._send()

    @property
    def output_room(self) -> int:
        """Return how large the output may be that the isolate owes; -1: it owes none."""
        if self._batch is None:
            return -1
        return output_bytes_max(len(self._batch) + len(self._runs))

    def on_output(self, cpu_ns: int, peak_bytes: int, output: bytes) -> Iterator[None]:
        """Take what the batch's runs said; the batch is out until all of it is taken.

        Yields after each TURN_NS: a run can say so much that everybody else would wait for it.
        """
        batch = self._batch
        if batch is None:
            raise ValueError("an output without a batch")
        turn_ns = time.monotonic_ns()
        taken_ns = turn_ns - self.used_ns
        self._account(batch, min(cpu_ns, taken_ns), min(peak_bytes, PEAK_BYTES_MAX))
        count_max = (len(batch) + len(self._runs)) * MESSAGES_PER_RUN
        for message in messages_of(output, count_max):
            run = self._runs.get(message.run)
            if run is not None:  # else it has ended: its wall time ran out, or a limit of ours
                self._take(run, message)
            worked_ns = time.monotonic_ns() - turn_ns
            if worked_ns > TURN_NS:
                taken_ns += worked_ns
                yield
                turn_ns = time.monotonic_ns()
        # What the engine did for it counts, too: the host calls of a batch hold up everybody.
        taken_ns += time.monotonic_ns() - turn_ns
        self._mean_ns = (self._mean_ns + taken_ns // max(1, len(batch))) // 2
        self._batch = None
        if len(set(batch)) == 1:
            self._check_cpu(batch[0])
        if self._waiting or self._answers:
            self._send()
        else:
            self.leave_if_over()

    def _take(self, run: Run, message: Message) -> None:
        if run.awaits_effects is not None:
            raise ValueError("a message of a run that has said its last")
        if type(message) is Done:
            if self._tells_usage:
                self._take_usage(run, message)
            self._done(run, message)
        elif type(message) is Call:
            self._call(run, message)
        elif type(message) is LogLines:
            self._take_log(run, message.lines, message.dropped)
        elif type(message) is Usage:
            self._take_usage(run, message)

    def _take_usage(self, run: Run, told: Done | Usage) -> None:
        """Take what an instance says that it used, as far as it can have."""
        run.cpu_ns = min(told.cpu_ns, time.monotonic_ns() - run.started_ns)
        run.fuel = min(told.fuel, run.limits.fuel)
        run.peak_bytes = held = min(told.memory_bytes, run.limits.memory_mb * MIB)
        self._instance_bytes = max(held + THREAD_BYTES, self._instance_bytes * 7 // 8)

    def _account(self, batch: tuple[int, ...], cpu_ns: int, peak_bytes: int) -> None:
        """Share the batch's CPU time evenly among its runs: V8 tells only the sum."""
        if self._tells_usage:
            return
        share_ns = cpu_ns // max(1, len(batch))
        alone = len(set(batch)) == 1  # perhaps with several answers
        for number in batch:
            run = self._runs.get(number)
            if run is not None:
                run.cpu_ns += share_ns
                run.peak_bytes = peak_bytes
                if alone:
                    run.own_cpu_ns = run.own_cpu_ns + share_ns

    def _check_cpu(self, number: int) -> None:
        """End a run that used its CPU up in many short steps, which the cell sees one by one.

        Only what it used with nobody beside it counts: no run is ended for its neighbour's CPU.
        """
        run = self._runs.get(number)
        if run is None or run.own_cpu_ns <= run.limits.cpu_ms * 1_000_000:
            return
        used_ms = run.own_cpu_ns // 1_000_000
        hit = LimitHit(name="cpu_ms", value=run.limits.cpu_ms, used=used_ms)
        self._end(run, Outcome.CPU_EXCEEDED, limit=hit)

    def cancel(self, run: Run) -> bool:
        """End the run if it is here; one that is on the thread right now ends when it is not."""
        if run in self._waiting:
            self._waiting.remove(run)
            run.outcome = Outcome.CANCELLED
            self.house.dispatcher.end(run)
            return True
        if self._runs.get(run.number) is not run:
            return False
        run.cancel_asked = True
        if self._batch is None or run.number not in self._batch:
            self._end(run, Outcome.CANCELLED)
            if self._batch is None and self.loaded:
                self._send()  # the isolate hears of it at once
        return True

    def sweep(self, now_ns: int) -> None:
        """End runs whose wall time is over; kill an isolate that does not come back."""
        stuck = False
        silent_ns = now_ns - max(self.used_ns, self.house.heard_ns)
        if self.loading and self.isolate and silent_ns > LOAD_MS * 1_000_000:
            self.house.kill()
        for run in tuple(self._runs.values()):
            if run.cancel_asked and self.cancel(run) and run.number not in self._runs:
                continue
            over_ns = now_ns - run.started_ns - run.limits.wall_ms * 1_000_000
            if over_ns <= 0:
                continue
            if self._batch is None or run.number not in self._batch:
                self._end_by_wall(run, now_ns)
            elif over_ns > STUCK_MS * 1_000_000:
                stuck = True
        if self.loaded and self._batch is None and (self._waiting or self._answers):
            self._send()  # there is room now for what waited
        self.leave_if_over()
        if stuck and silent_ns > STUCK_MS * 1_000_000:
            self.house.kill()

    def suspects(self) -> list[Suspect]:
        """Return the runs that were on the thread when the cell died."""
        numbers = dict.fromkeys(self._batch or ())  # several answers of one run: it is one suspect
        runs = [self._runs[number] for number in numbers if number in self._runs]
        return [Suspect(self, run) for run in runs]

    def inside(self) -> list[Suspect]:
        """Return the runs that have begun and not ended."""
        return [Suspect(self, run) for run in self._runs.values()]

    def name_the_run(self, stop: Stop) -> None:
        """Say whom a stop is about that came between two steps, when only one run was at work."""
        suspects = self.suspects()
        if not self.holds(stop.run) and len(suspects) == 1:
            stop.run = suspects[0].run.number

    def holds(self, number: int) -> bool:
        """Say whether this is one of the runs inside."""
        return number in self._runs

    def stopped(self, stop: Stop, *, loading: bool) -> None:
        """The cell's watchdog named the run that went over its limit."""
        run = self._runs.get(stop.run)
        if run is None:
            if loading:
                hit = stop.limit
                figure = f": {hit.name} {hit.value}, used {hit.used}" if hit is not None else ""
                message = f"{stop.outcome} while the version was loaded{figure}"
                self._blame_the_first()
                self.fail_all(GuestError(name="LoadError", message=message))
            return
        for line in stop.log[: run.limits.log_lines]:
            level, _, text = line.partition(" ")
            self._take_log(run, [(level, run.clock_ms, text)], 0)
        self.house.dispatcher.quarantine(self.version)
        run.has_killed = True
        self._end(run, stop.outcome, limit=stop.limit)

    def killed(self, run: Run, death: Death) -> None:
        """This run alone was on a thread when the cell died without a word."""
        self.house.dispatcher.quarantine(self.version)
        over_ns = time.monotonic_ns() - run.started_ns - run.limits.wall_ms * 1_000_000
        run.has_killed = True
        if over_ns > 0:
            self._end_by_wall(run, time.monotonic_ns())
        elif death.out_of_memory and self.house.alone:
            limit_mb = run.limits.memory_mb
            used_mb = max(limit_mb, death.peak_bytes // (1024 * 1024))
            hit = LimitHit(name="memory_mb", value=limit_mb, used=used_mb)
            self._end(run, Outcome.MEMORY_EXCEEDED, limit=hit)
        elif not self.house.alone or (
            run.losses + 1 < LOSSES_MAX and death.signal == signal.SIGKILL and not death.lied
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
        if self._batch:
            taken_ns = (time.monotonic_ns() - self.used_ns) // len(self._batch)
            self._mean_ns = max(self._mean_ns, taken_ns)
        self.loaded = False
        self.loading = True

    def load_failed(self, death: Death) -> None:
        self._load_deaths_count += 1
        if death.out_of_memory and not self.house.alone:
            self.rerun_all_alone()  # others may have filled the cell
            return
        is_foreign = death.signal == signal.SIGKILL and not death.lied
        if is_foreign and self._load_deaths_count < DEATHS_MAX:
            return  # not its own doing: it is loaded again
        how = "ran out of memory" if death.out_of_memory else "died"
        message = f"the cell {how} while the version was loaded"
        self._blame_the_first()
        self.fail_all(GuestError(name="LoadError", message=message))

    def _blame_the_first(self) -> None:
        """Have one run count for the cell that died while the version was loaded, not each."""
        if self._waiting:
            self._waiting[0].has_killed = True

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
            if run.losses < DEATHS_MAX:
                self._waiting.appendleft(run)
            else:
                message = f"{run.losses} cells died while it ran"
                run.outcome, run.error = Outcome.CRASHED, GuestError(name="Crash", message=message)
                self.house.dispatcher.end(run)
        if self.house.outdated:
            self.move_out()
        elif self._waiting:
            self.loading = True
            self.house.load(self)
        else:
            self.house.unload(self)

    def move_out(self) -> None:
        """Send away what has not begun: the project's code runs in cells of another kind now."""
        waiting, self._waiting = self._waiting, deque()
        self.loading = False
        for run in waiting:
            if self.house.alone:
                self.house.dispatcher.rerun_alone(run)
            else:
                self.house.dispatcher.place(run)
        self.leave_if_over()

    @property
    def at_rest(self) -> bool:
        """Say whether the isolate can be taken away now: nothing is in it, or on its way."""
        return self.idle and self._batch is None and not self.loading

    def leave_if_over(self) -> None:
        """Give the isolate up when nothing runs in it and nothing new will."""
        if self.at_rest and (self.house.alone or not self.version.live or self.house.outdated):
            self.house.unload(self)

    def take_waiting(self) -> list[Run]:
        """Take out, and return, what has not begun."""
        waiting, self._waiting = self._waiting, deque()
        return list(waiting)

    def rerun_all_alone(self) -> None:
        """The cell has no room for this version now: each of its runs gets a cell of its own."""
        waiting, self._waiting = self._waiting, deque()
        self.loading = False
        for run in waiting:
            self.house.dispatcher.rerun_alone(run)

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
        size = 0
        while answers and len(parts) < BATCH_MESSAGES_MAX and size < BATCH_BYTES:
            number, text = answers.popleft()
            size += len(text)
            if number in runs or number == 0:
                parts.append(text)
                numbers.append(number)
            if number in runs:
                runs[number].held_bytes -= len(text)
        # Runs that would have to wait for others in their batch wait here, where no wall time runs.
        room = min(
            BATCH_MESSAGES_MAX - len(parts),
            self._interleaved_max - len(runs),
            max(1, BATCH_NS // self._mean_ns),
        )
        if self._instance_bytes:
            fits = self.house.instances_room(self._instance_bytes)
            room = min(room, fits if runs else max(1, fits))
        if waiting and room > 0:
            now_ms, now_ns = self.house.dispatcher.clock(), time.monotonic_ns()
            for _ in range(min(room, len(waiting))):
                if size >= BATCH_BYTES:
                    break
                run = waiting.popleft()
                size += len(run.input)
                self._last_number = number = self._last_number + 1
                runs[number] = run
                run.number = number
                run.started_ns = now_ns
                run.clock_ms = run.guest_ms = now_ms
                run.seed = os.urandom(8).hex()  # a secret of the run: its id is public
                parts.append(start_message(number, run))
                numbers.append(number)
        if not parts:
            return
        self._batch = tuple(numbers)
        self.used_ns = time.monotonic_ns()
        self.house.send(self.isolate, b"[" + b",".join(parts) + b"]")

    def _done(self, run: Run, message: Done) -> None:
        if run.open_effects:
            run.awaits_effects = lambda: self._done(run, message)
            return
        value = bytes(message.value)
        if message.status is DoneStatus.OK and len(value) <= run.limits.output_bytes:
            check_text(value, "")
            run.result = value
            self._end(run, Outcome.SUCCEEDED)
        elif message.status is DoneStatus.THREW:
            self._end(run, Outcome.FAILED, error=read_thrown(value))
        elif message.status is DoneStatus.STOPPED:
            stopped = read_stopped(value)
            if stopped.limit is None and not self.house.alone:
                self.remove(run)
                run.start_again()
                self.house.dispatcher.rerun_alone(run)  # the others left no room in the cell
                return
            self._end(run, stopped.outcome, limit=stopped.limit, error=stopped.error, said=True)
        else:
            used = len(value) if message.status is DoneStatus.OK else read_count(value)
            hit = LimitHit(name="output_bytes", value=run.limits.output_bytes, used=used)
            self._end(run, Outcome.OUTPUT_EXCEEDED, limit=hit)

    def _call(self, run: Run, message: Call) -> None:
        call, arguments = message.call, bytes(message.arguments)
        if call != run.calls_count + 1:
            raise ValueError(f"host call {call} after {run.calls_count}")
        size = len(arguments)
        run.held_bytes += size
        run.asked_bytes += size
        answer = partial(self._answer, run, call, run.losses, size)
        too_much = size > ARGUMENTS_BYTES_MAX or run.held_bytes > HELD_BYTES_MAX
        try:
            if run.asked_bytes > ASKED_BYTES_MAX:
                hit = LimitHit(name="host_call_bytes", value=ASKED_BYTES_MAX, used=run.asked_bytes)
                raise LimitReached(Outcome.HOST_CALLS_EXCEEDED, hit)  # noqa: TRY301 - as the broker's
            if too_much and call <= run.limits.host_calls:
                run.calls_count += 1
                answer(False, _TOO_MUCH_HELD)
            else:
                check_text(arguments, "")
                broker = self.house.dispatcher.broker
                broker.handle(run, call, message.operation, arguments, answer)
        except LimitReached as reached:
            self._end(run, reached.outcome, limit=reached.limit)

    def _answer(
        self, run: Run, call: int, losses: int, asked_bytes: int, ok: bool, value: bytes
    ) -> None:
        number = run.number
        if self._runs.get(number) is not run or run.losses != losses:
            return
        run.guest_ms = self.house.dispatcher.clock()
        run.held_bytes -= asked_bytes
        if len(value) > ANSWER_BYTES_MAX:
            ok, value = False, _TOO_LARGE
        elif run.held_bytes + len(value) > HELD_BYTES_MAX:
            ok, value = False, _TOO_MUCH_HELD
        text = answer_message(number, call, run.guest_ms, ok=ok, value=value)
        run.held_bytes += len(text)
        self._answers.append((number, text))
        if run.awaits_effects is not None and not run.open_effects:
            run.awaits_effects()
        if self._batch is None and self.loaded:
            self._send()

    def _take_log(self, run: Run, lines: list[tuple[str, int, str]], dropped: int) -> None:
        kept = []
        limits, redaction = run.limits, run.version.redaction
        for told, told_ms, text in lines:
            level = told if told in LEVELS else "info"
            at_ms = min(max(told_ms, run.clock_ms), run.guest_ms)  # as its own clock can have stood
            size = len(text)
            if len(run.log) >= limits.log_lines or run.log_bytes + size > limits.log_bytes + 64:
                dropped += 1
                continue
            kept.append((level, at_ms, text if redaction is None else redaction.line(text)))
            run.log.append(kept[-1])
            run.log_bytes += size
        run.log_dropped = min(COUNT_MAX, run.log_dropped + dropped)
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
        said: bool = False,
    ) -> None:
        """End the run; `said`: by its isolate, which needs no word of it."""
        if self._runs.pop(run.number, None) is None:
            return
        if outcome not in _ENDED_BY_GUEST and self.loaded and not said:
            self._answers.append((0, abort_message(run.number)))
        run.outcome, run.limit, run.error = outcome, limit, error
        self.house.dispatcher.end(run)


def suspects_of(runners: Iterable[Runner], death: Death) -> list[Suspect]:
    """Return the runs that may have killed a cell without a word."""
    found = [suspect for runner in runners for suspect in runner.suspects()]
    if death.lied and not found:  # it spoke when no batch was out
        found = [suspect for runner in runners for suspect in runner.inside()]
    return found
