"""One WebAssembly version in a cell: takes batches, runs them on its threads, stops them in time.

Path:   sandbox.child -> here -> program; outputs leave from whichever thread ends a batch
Never:  runs two guests at once: whoever works on a batch holds it, and hands it on.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import msgspec

from runtimes.contract import (
    CALL,
    DONE,
    USAGE,
    DoneStatus,
    GuestError,
    LimitHit,
    LoadFailed,
    Outcome,
    Stop,
)
from runtimes.webassembly import wasmtime_unsafe
from runtimes.webassembly.endings import (
    GUEST_ERRORS,
    Stopped,
    ending_of,
    load_failed,
    memory_bytes,
)
from runtimes.webassembly.program import BuildHeader, LoadHeader, Program, compile_module
from runtimes.webassembly.run import GuestRun, Halted, Start
from runtimes.webassembly.threads import Threads, Worker

__all__ = ["build", "initialise", "new_guest"]

LOAD_CPU_MS: Final = 2_000  # the start of a module, when it is tried out
LOAD_WALL_MS: Final = 10_000  # ... on a busy machine; the engine waits 15 s for an answer
GRACE_MS: Final = 250  # from the soft stop of a run to the end of its cell
WAIT_MS: Final = 5  # how often a waiting main thread looks at the watchdog
_THREADS: Final = Threads()  # of this process, whose guests share them
_encode: Final = msgspec.json.encode

initialise = wasmtime_unsafe.initialise


class Answer(msgspec.Struct, array_like=True, tag=1):
    """What the engine answers to a host call: see `runtimes.contract.ANSWER`."""

    run: int
    call: int
    now_ms: int
    ok: bool
    value: msgspec.Raw


class Abort(msgspec.Struct, array_like=True, tag=2):
    run: int


_BATCH: Final = msgspec.json.Decoder(list[Start | Answer | Abort])


class Aborted(Exception):
    """The engine has ended the run: nobody wants to hear of it."""


def build(header: bytes, body: bytes) -> bytes:
    """Compile a module.

    Raises:
        LoadFailed: names what is wrong with it.
    """
    return compile_module(msgspec.json.decode(header, type=BuildHeader), body)


class _Turn:
    """One run on its thread, and what it waits for."""

    __slots__ = ("answer", "asked_count", "clock", "cpu_before_ns", "deadline_ns", "run", "stop",
                 "stopped_ns", "wake")  # fmt: skip

    def __init__(self, run: GuestRun, clock: int, wall_ms: int) -> None:
        self.run = run
        self.clock = clock  # of the thread's CPU
        self.cpu_before_ns = time.clock_gettime_ns(clock)
        self.deadline_ns = time.monotonic_ns() + wall_ms * 1_000_000
        self.asked_count = 0
        self.wake: threading.Lock | None = None  # made when it first waits
        self.answer: Answer | None = None  # None when it is woken: aborted
        self.stop: Stopped | None = None
        self.stopped_ns = 0

    def ready_to_wait(self) -> "threading.Lock":
        if self.wake is None:
            self.wake = threading.Lock()
            self.wake.acquire()
        return self.wake

    def go_on(self) -> None:
        assert self.wake is not None
        self.wake.release()

    def is_stopped(self) -> bool:
        return self.stop is not None

    def cpu_ns(self) -> int:
        return time.clock_gettime_ns(self.clock) - self.cpu_before_ns


class Guest:
    """One module and the runs in it: `sandbox.child.Guest`.

    A guest waits for a host call on its own stack, so each run that waits has a thread. There is
    one batch at a time, and one thread at a time works on it. When its run asks the engine
    something, it hands the rest of the batch to another thread and waits; the answer comes with a
    later batch, and with it the right to work on that one. So nothing here but `_turn` is ever
    touched by two threads at once, the main thread's `post` included: it comes between batches.
    """

    def __init__(
        self,
        on_output: Callable[["Guest", int, bytes], None],
        on_broken: Callable[["Guest", str], None],
        tick: Callable[[], None],
    ) -> None:
        self._on_output = on_output
        self._on_broken = on_broken
        self._tick = tick
        self.busy = False
        self.loading = False
        self._program: Program | None = None
        self._messages: deque[Start | Answer | Abort] = deque()  # what is left of the batch
        self._out: list[bytes] = []
        self._waiting: dict[int, _Turn] = {}  # runs that wait for the engine
        self._closed = False
        self._watching = threading.Lock()  # the two below, and every rise of the epoch
        self._turn: _Turn | None = None  # whose code is on a thread now

    def load(self, header: bytes, program: bytes) -> bytes:
        """Load what `build` made and return JSON {handlers, kind}.

        Raises:
            LoadFailed: it does not fit this machine, or its start fails when it is tried out.
        """
        request = msgspec.json.decode(header, type=LoadHeader)
        self._program = Program(request, program)
        if request.trial:
            self._try_out(self._program, request.now_ms)
        shape = self._program.shape
        return _encode({"handlers": request.options.handlers, "kind": shape.kind, "log": []})

    def post(self, batch: bytes) -> None:
        self._messages.extend(_BATCH.decode(batch))
        self.busy = True
        self._hand_on()

    def watch(self) -> Stop | None:
        """Stop the run that is over its limits; the whole cell if that run does not stop."""
        with self._watching:
            turn = self._turn
            if turn is None:
                return None
            now_ns = time.monotonic_ns()
            if turn.stop is None:
                turn.stop, turn.stopped_ns = self._over(turn, now_ns), now_ns
                if turn.stop is None:
                    return None
            assert self._program is not None
            self._program.engine.raise_epoch()  # each time: its instance may have come after it
            if now_ns - turn.stopped_ns < GRACE_MS * 1_000_000:
                return None
            run, stop = turn.run, turn.stop
            return Stop(
                run=run.start.run, outcome=stop.outcome, limit=stop.limit, log=run.unsent_log()
            )

    def memory_stop(self) -> Stop:
        return Stop(run=0, outcome=Outcome.MEMORY_EXCEEDED, limit=None, log=[])

    def crash_stop(self) -> Stop:
        turn = self._turn
        run = 0 if turn is None else turn.run.start.run
        return Stop(run=run, outcome=Outcome.CRASHED, limit=None, log=[])

    def relieve(self) -> None:
        """Do nothing: an instance's memory goes with its run."""

    def close(self) -> None:
        """Forget everything; runs that wait are given up."""
        self._closed = True
        for turn in tuple(self._waiting.values()):
            turn.go_on()
        if self._program is not None:
            self._program.close()

    def _over(self, turn: _Turn, now_ns: int) -> Stopped | None:
        used_ms = turn.cpu_ns() // 1_000_000
        cpu_ms = turn.run.start.cpu_ms
        if used_ms > cpu_ms:
            hit = LimitHit(name="cpu_ms", value=cpu_ms, used=used_ms)
            return Stopped(outcome=Outcome.CPU_EXCEEDED, limit=hit)
        over_ms = (now_ns - turn.deadline_ns) // 1_000_000
        if over_ms > 0:
            wall_ms = _wall_ms(turn.run.start)
            hit = LimitHit(name="wall_ms", value=wall_ms, used=wall_ms + over_ms)
            return Stopped(outcome=Outcome.TIMED_OUT, limit=hit)
        return None

    # Who works on the batch.

    def _hand_on(self) -> None:
        """Give what is left of the batch to whoever it is for; send the output if nothing is."""
        messages = self._messages
        while messages:
            message = messages.popleft()
            if type(message) is Start:
                try:
                    _THREADS.start(partial(self._work, message))
                except RuntimeError as error:  # the cell has no memory left for a thread's stack
                    self._no_room(message, str(error))
                    continue
                return
            turn = self._waiting.pop(message.run, None)
            if turn is not None:
                turn.answer = message if type(message) is Answer else None
                turn.go_on()
                return
        try:
            output = b"[" + b",\n".join(self._out) + b"]"  # a line each: see engine.messages
        except MemoryError:  # of ours: no run of these may be told that it is its own
            self._on_broken(self, "full")
        self._out = []
        self.busy = False
        self._on_output(self, 0, output)

    def _no_room(self, start: Start, why: str) -> None:
        """Give a run back: the engine has it run again where it is alone."""
        told = GuestError(name="MemoryError", message=f"there is no room in the cell: {why}")
        value = Stopped(outcome=Outcome.MEMORY_EXCEEDED, error=told)
        self._out.append(_encode([DONE, start.run, DoneStatus.STOPPED, value]))

    def _work(self, start: Start, worker: Worker) -> None:
        """Serve runs on this thread. It begins with the batch in its hands."""
        try:
            self._serve(start, worker.clock)
            messages = self._messages
            while messages and isinstance(following := messages[0], Start):
                messages.popleft()
                self._serve(following, worker.clock)
            if self._closed:
                return
            worker.rest()  # before the batch leaves: the next may come at once
            self._hand_on()
        except Aborted:
            return  # closed while a run waited
        except MemoryError:  # ours: what runs here goes on in cells of their own
            self._on_broken(self, "full")
        except Exception as error:  # noqa: BLE001 - ours: the cell ends, the engine is told
            self._on_broken(self, repr(error))

    def _serve(self, start: Start, clock: int) -> None:
        """Run one run to its end; others may have worked on the batch when it returns."""
        program = self._program
        assert program is not None
        run = program.new_run(start)
        turn = _Turn(run, clock, _wall_ms(start))
        run.ask = partial(self._ask, turn)
        run.is_stopped = turn.is_stopped
        self._on_thread(turn)
        status: DoneStatus
        value: Any
        succeeded = False
        try:
            result = program.run(run)
            status, value = DoneStatus.OK, msgspec.Raw(_in_message(result))
            if len(result) > start.output_bytes:
                status, value = DoneStatus.OUTPUT, len(result)
            succeeded = status is DoneStatus.OK and turn.stop is None
        except Aborted:
            if self._closed:
                raise
            return
        except GUEST_ERRORS as error:
            status, value = ending_of(run, program, error)
        finally:
            with self._watching:
                self._turn = None
            usage = self._usage(turn)
            program.release(run, succeeded=succeeded)
        if turn.stop is not None:
            status, value = DoneStatus.STOPPED, turn.stop
        log = run.log_message(last=True)
        if log is not None:
            self._out.append(log)
        self._out.append(_encode([DONE, start.run, status, value, *usage]))

    def _usage(self, turn: _Turn) -> tuple[int, int, int]:
        """Return CPU in nanoseconds, memory in bytes, fuel."""
        run, program, fuel = turn.run, self._program, 0
        # Stopped from outside, Wasmtime has not written down what it burnt since the last call.
        if program is not None and program.fuel and run.instance is not None and not turn.stop:
            fuel = program.fuel - run.instance.fuel_left()
        return turn.cpu_ns(), memory_bytes(run), fuel

    def _on_thread(self, turn: _Turn) -> None:
        with self._watching:
            self._turn = turn
            if turn.run.instance is not None:
                turn.run.instance.allow(None)  # the epoch may have risen for another run

    def _ask(self, turn: _Turn, operation: str, arguments: bytes) -> tuple[bool, bytes]:
        """Ask the engine, and wait on this thread for its answer.

        Raises:
            Aborted: the engine has ended the run.
            Halted: it has been stopped here.
        """
        run, start = turn.run, turn.run.start
        with self._watching:
            self._turn = None
        if turn.is_stopped():
            raise Halted
        turn.asked_count += 1
        # The engine may end the run before it says more.
        self._out.append(b"[%d,%d,%d,%d,%d]" % (USAGE, start.run, *self._usage(turn)))
        log = run.log_message(last=False)
        if log is not None:
            self._out.append(log)
        self._out.append(
            b"[%d,%d,%d,%b,%b]"
            % (CALL, start.run, turn.asked_count, _encode(operation), _in_message(arguments))
        )
        wake = turn.ready_to_wait()
        self._waiting[start.run] = turn
        self._hand_on()
        wake.acquire()
        answer, turn.answer = turn.answer, None
        if answer is None:
            raise Aborted
        run.now_ms = answer.now_ms
        self._on_thread(turn)
        return answer.ok, bytes(answer.value)

    def _try_out(self, program: Program, now_ms: int) -> None:
        start = Start(
            run=0, handler="", now_ms=now_ms, seed="0" * 16, cpu_ms=LOAD_CPU_MS,
            output_bytes=1024, log_lines=16, log_bytes=4096,
            context=("", 0, 0, now_ms + LOAD_WALL_MS, "", 0), input=msgspec.Raw(b"null"),
        )  # fmt: skip
        run = program.new_run(start)
        failures: list[LoadFailed] = []

        def attempt() -> None:
            clock = time.pthread_getcpuclockid(threading.get_ident())
            turn = _Turn(run, clock, _wall_ms(start))
            run.is_stopped = turn.is_stopped
            self._on_thread(turn)
            try:
                program.try_out(run)
            except GUEST_ERRORS as error:
                failures.append(load_failed(run, program, error, turn.stop))
            finally:
                with self._watching:
                    self._turn = None

        thread = threading.Thread(target=attempt, daemon=True)
        self.loading = True
        thread.start()
        while thread.is_alive():
            thread.join(WAIT_MS / 1000)
            self._tick()
        self.loading = False
        if failures:
            raise failures[0]


def _in_message(text: bytes) -> bytes:
    """Return the guest's JSON without what parts messages; in JSON a line break is but a blank."""
    return text.replace(b",\n", b", ")


def _wall_ms(start: Start) -> int:
    return max(1, start.context[3] - start.now_ms)


new_guest = Guest
