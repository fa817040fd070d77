"""One WebAssembly version in a cell, without the cell: batches, runs that wait, soft stops."""

import json
import queue
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from wasmtime import wat2wasm

from runtimes.contract import LoadFailed, Outcome
from runtimes.webassembly import guest as wasm
from runtimes.webassembly.guest import Guest
from tests.standins.wasm_toolchains import c_module

NOW_MS = 1_288_310_400_000

# Asks the engine what it was given, as often as its first digit says; then gives the last answer.
ASKS = r"""
(module
  (import "engine" "call" (func $call (param i32 i32) (result i64)))
  (import "engine" "log" (func $log (param i32 i32 i32)))
  (memory (export "memory") 2)
  (global $top (mut i32) (i32.const 4096))
  (data (i32.const 16) "{\"operation\":\"timer\",\"arguments\":{\"ms\":1}}")
  (func (export "alloc") (param $size i32) (result i32)
    (local $at i32)
    (local.set $at (global.get $top))
    (global.set $top (i32.add (local.get $at) (local.get $size)))
    (local.get $at))
  (func (export "handle") (param $at i32) (param $size i32) (result i64)
    (local $left i32)
    (local.set $left (i32.sub (i32.load8_u (local.get $at)) (i32.const 48)))
    (block $done (loop $next
      (br_if $done (i32.eqz (local.get $left)))
      (call $log (i32.const 1) (local.get $at) (local.get $size))
      (drop (call $call (i32.const 16) (i32.const 42)))
      (local.set $left (i32.sub (local.get $left) (i32.const 1)))
      (br $next)))
    (i64.or (i64.shl (i64.extend_i32_u (local.get $at)) (i64.const 32))
      (i64.extend_i32_u (local.get $size)))))
"""
SPINS = """
(module (memory (export "memory") 1)
  (func (export "alloc") (param i32) (result i32) (i32.const 0))
  (func (export "handle") (param i32 i32) (result i64)
    (loop $for_ever (br $for_ever)) (i64.const 0)))
"""
COUNTS = """
(module (memory (export "memory") 1) (global $runs (mut i32) (i32.const 48))
  (func (export "alloc") (param i32) (result i32) (i32.const 0))
  (func (export "handle") (param i32 i32) (result i64)
    (global.set $runs (i32.add (global.get $runs) (i32.const 1)))
    (i32.store8 (i32.const 100) (global.get $runs))
    (i64.const 0x6400000001)))
"""


class Cell:
    """Plays the part of `sandbox.child`: one guest, its outputs, and the watchdog."""

    def __init__(self, module: str | bytes, **options: Any) -> None:
        header = {
            "memory_mb": 16, "now_ms": NOW_MS, "name": "f", "trial": True,
            "fuel": options.pop("fuel", 0), "options": {"handlers": ["default"], **options},
        }  # fmt: skip
        self.outputs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.broken: list[str] = []
        self.guest = Guest(
            lambda _guest, _cpu, text: self.outputs.put(json.loads(text)),
            lambda _guest, kind: self.broken.append(kind),
            lambda: self.guest.watch() and None,  # the cell's tick
        )
        binary = module if isinstance(module, bytes) else bytes(wat2wasm(module))
        program = wasm.build(msgspec.json.encode(header), binary)
        self.loaded = json.loads(self.guest.load(msgspec.json.encode(header), program))

    def start(
        self, run: int, value: Any, *, cpu_ms: int = 1000, wall_ms: int = 60_000
    ) -> list[Any]:
        context = ["exe_1", 1, 1, NOW_MS + wall_ms, "exe_1", 0]
        return [0, run, "default", NOW_MS, "00ff", cpu_ms, 1 << 20, 256, 65_536, context, value]

    def send(self, *messages: list[Any]) -> list[Any]:
        """Post a batch and return the output, watching as the cell does."""
        self.guest.post(json.dumps(messages).encode())
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                output = self.outputs.get(timeout=0.005)
            except queue.Empty:
                assert self.guest.watch() is None
            else:
                assert not self.guest.busy
                return output
        raise AssertionError("no output")


def done(output: list[Any]) -> dict[int, Any]:
    """Return status and value of each run that ended."""
    return {message[1]: message[2:4] for message in output if message[0] == 0}


def said(output: list[Any]) -> list[Any]:
    """Return all messages but those of usage."""
    return [message for message in output if message[0] != 3]


def calls(output: list[Any]) -> list[int]:
    return [message[1] for message in output if message[0] == 1]


@pytest.fixture
def cell_of() -> Iterator[Callable[..., Cell]]:
    cells: list[Cell] = []

    def make(module: str | bytes, **options: Any) -> Cell:
        cells.append(Cell(module, **options))
        return cells[-1]

    yield make
    for cell in cells:
        cell.guest.close()
        assert cell.broken == []


def test_a_batch_has_one_output(cell_of: Callable[..., Cell]) -> None:
    """All runs of a batch are in it, each with its usage."""
    cell = cell_of(ASKS)

    output = cell.send(*(cell.start(n, n * 0) for n in range(1, 41)))

    assert done(output) == {n: ["ok", 0] for n in range(1, 41)}
    assert [message[1] for message in output] == list(range(1, 41))
    assert all(cpu_ns > 0 and memory == 131_072 for *_, cpu_ns, memory, _ in output)
    assert cell.loaded == {"handlers": ["default"], "kind": "core", "log": []}


def test_runs_that_wait_let_others_run(cell_of: Callable[..., Cell]) -> None:
    """Each waits on its own stack; answers in any order find the right one."""
    cell = cell_of(ASKS)

    first = cell.send(*(cell.start(n, 2) for n in (1, 2, 3)), cell.start(4, 0))
    second = cell.send([1, 3, 1, NOW_MS + 7, True, None], [1, 1, 1, NOW_MS + 8, True, None])
    third = cell.send([1, 3, 2, NOW_MS + 9, True, None], cell.start(5, 1))
    last = cell.send(
        [1, 1, 2, NOW_MS + 9, True, None],
        [1, 2, 1, NOW_MS + 9, True, None],
        [1, 5, 1, NOW_MS + 9, False, {"name": "Error", "message": "no", "code": "no"}],
    )

    assert (calls(first), done(first)) == ([1, 2, 3], {4: ["ok", 0]})
    assert (calls(second), done(second)) == ([3, 1], {})
    assert (calls(third), done(third)) == ([5], {3: ["ok", 2]})
    assert (calls(last), done(last)) == ([2], {1: ["ok", 2], 5: ["ok", 1]})


def test_the_log_comes_before_the_call_it_precedes(cell_of: Callable[..., Cell]) -> None:
    """With the run's clock, which an answer moves."""
    cell = cell_of(ASKS)

    first = cell.send(cell.start(1, 2))
    second = cell.send([1, 1, 1, NOW_MS + 250, True, None])

    assert said(first) == [[2, 1, [["info", NOW_MS, "2"]], 0], [1, 1, 1, "timer", {"ms": 1}]]
    assert said(second)[0] == [2, 1, [["info", NOW_MS + 250, "2"]], 0]
    assert first[0][:2] == [3, 1], "what it used so far, should the engine end it while it waits"


def test_an_aborted_run_says_nothing_more(cell_of: Callable[..., Cell]) -> None:
    """The engine has ended it; its thread is free, and others go on."""
    cell = cell_of(ASKS)
    cell.send(cell.start(1, 1), cell.start(2, 1))

    output = cell.send([2, 1], [1, 1, 1, NOW_MS, True, None], [1, 2, 1, NOW_MS, True, None])

    assert done(output) == {2: ["ok", 1]}
    assert {message[1] for message in output} == {2}


def test_answers_to_nobody_are_passed_over(cell_of: Callable[..., Cell]) -> None:
    """A run that has ended cannot be answered; the batch still has its output."""
    cell = cell_of(ASKS)

    assert cell.send([1, 77, 1, NOW_MS, True, None], [2, 78]) == []


def test_cpu_is_stopped_softly(cell_of: Callable[..., Cell]) -> None:
    """The run ends with the limit by name and number; the next of the batch runs."""
    cell = cell_of(SPINS)

    output = cell.send(cell.start(1, 0, cpu_ms=20), cell.start(2, 0, cpu_ms=20))

    for run in (1, 2):
        status, stopped = done(output)[run]
        assert status == "stopped"
        assert stopped["outcome"] == "cpu_exceeded"
        assert stopped["limit"]["value"] == 20
        assert 20 < stopped["limit"]["used"] < 200


def test_wall_time_is_stopped_softly(cell_of: Callable[..., Cell]) -> None:
    """Also a run that has CPU time left."""
    cell = cell_of(SPINS)

    output = cell.send(cell.start(1, 0, cpu_ms=30_000, wall_ms=50))

    _, stopped = done(output)[1]
    assert (stopped["outcome"], stopped["limit"]["name"]) == ("timed_out", "wall_ms")


def test_a_stop_is_nobody_elses(cell_of: Callable[..., Cell]) -> None:
    """Runs that wait while another one is stopped go on as if nothing had been."""
    asks_or_spins = ASKS.replace(
        "(local $left i32)", "(local $left i32) (if (i32.eq (i32.load8_u (local.get $at)) "
        "(i32.const 57)) (then (loop $for_ever (br $for_ever))))",
    )  # fmt: skip
    cell = cell_of(asks_or_spins)

    cell.send(cell.start(1, 1))
    output = cell.send(cell.start(2, 9, cpu_ms=20))
    answered = cell.send([1, 1, 1, NOW_MS, True, None])

    assert done(output)[2][0] == "stopped"
    assert done(answered) == {1: ["ok", 1]}


def test_what_does_not_stop_ends_the_cell(
    cell_of: Callable[..., Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the grace the watchdog names the run, and the cell is to end itself."""
    cell = cell_of(SPINS)
    engine = cell.guest._program.engine  # type: ignore[union-attr]
    raise_epoch = engine.raise_epoch
    monkeypatch.setattr(engine, "raise_epoch", lambda: None)

    cell.guest.post(json.dumps([cell.start(9, 0, cpu_ms=20)]).encode())
    began = time.monotonic()
    while (stop := cell.guest.watch()) is None:
        assert time.monotonic() - began < 10

    raise_epoch()
    cell.outputs.get(timeout=10)
    assert (stop.run, stop.outcome) == (9, Outcome.CPU_EXCEEDED)
    assert time.monotonic() - began > wasm.GRACE_MS / 1000


def test_no_run_is_blamed_for_memory_that_the_cell_itself_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The cell says that it is full, and names nobody: its runs begin again elsewhere."""
    cell = Cell(ASKS)
    message = cell.start(1, 0)

    def no_room(_start: object) -> None:
        raise MemoryError

    monkeypatch.setattr(cell.guest._program, "new_run", no_room)
    cell.guest.post(json.dumps([message]).encode())
    deadline = time.monotonic() + 5
    while not cell.broken and time.monotonic() < deadline:
        time.sleep(0.001)

    assert cell.broken == ["full"]


def test_fuel_is_counted_and_the_same_every_time(cell_of: Callable[..., Cell]) -> None:
    """Two runs of the same work use the same fuel; used up, it is the limit that is named."""
    cell = cell_of(ASKS, fuel=10_000)
    spins = cell_of(SPINS, fuel=10_000)

    first = cell.send(cell.start(1, 0), cell.start(2, 0))
    output = spins.send(spins.start(1, 0))

    used = {message[1]: message[6] for message in first if message[0] == 0}
    assert used[1] == used[2] > 0
    assert done(output)[1] == [
        "stopped",
        {
            "outcome": "cpu_exceeded",
            "limit": {"name": "fuel", "value": 10_000, "used": 10_000},
            "error": None,
        },
    ]


@pytest.mark.parametrize(("reuse", "seen"), [(False, [1, 1, 1]), (True, [1, 2, 3])])
def test_an_instance_is_fresh_unless_it_is_to_be_used_again(
    cell_of: Callable[..., Cell], *, reuse: bool, seen: list[int]
) -> None:
    """Nothing of one run is left for the next, but where its author wants it so."""
    cell = cell_of(COUNTS, reuse=reuse)

    output = cell.send(*(cell.start(n, 0) for n in (1, 2, 3)))

    assert [value for _, value in done(output).values()] == seen


def test_a_start_that_does_not_end_is_refused() -> None:
    """It is tried out once, with a limit of its own."""
    with pytest.raises(LoadFailed) as refused:
        Cell('(module (memory (export "memory") 1) (func $spin (loop (br 0))) (start $spin)'
             ' (func (export "_start")))')  # fmt: skip

    assert refused.value.error.message == ("the module's start ended as cpu_exceeded: cpu_ms 2000")


def test_closing_gives_waiting_runs_up(cell_of: Callable[..., Cell]) -> None:
    """Their threads end; nothing is sent any more."""
    cell = cell_of(ASKS)
    cell.send(*(cell.start(n, 1) for n in range(1, 6)))

    cell.guest.close()

    with pytest.raises(queue.Empty):
        cell.outputs.get(timeout=0.1)


DIVIDES = """
#include <stdint.h>
__attribute__((export_name("alloc"))) int32_t make_room(int32_t size) { return 1024; }
__attribute__((noinline)) static int32_t divide(int32_t a, int32_t b) {
  return a / b;
}
__attribute__((export_name("handle"))) int64_t handle(int32_t at, int32_t size) {
  return divide(size, at - 1024);
}
"""


@pytest.mark.parametrize("debug", [True, False], ids=["with DWARF", "names only"])
def test_a_trap_names_the_authors_functions(
    cell_of: Callable[..., Cell], tmp_path: Path, *, debug: bool
) -> None:
    """And with DWARF the file and the line, as the author's compiler knows them."""
    source = tmp_path / "divides.c"
    source.write_text(DIVIDES)
    cell = cell_of(c_module(source, "-mexec-model=reactor", *(["-g"] if debug else [])))

    status, error = done(cell.send(cell.start(1, 0)))[1]

    assert (status, error["name"], error["message"]) == ("threw", "Trap", "integer divide by zero")
    first, second = error["stack"].splitlines()
    assert first.startswith("    at divide (")
    assert second.startswith("    at handle (")
    if debug:
        assert (error["file"], error["line"]) == ("./divides.c", 5)
        assert "./divides.c:5:" in first
