"""How runs end when the engine itself goes wrong: somebody is told, and nobody else pays for it."""

import itertools
import json
from collections import deque
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from engine.catalogue import Version
from engine.commit import Settler
from engine.dispatch import QUARANTINE_MS, Dispatcher
from engine.ends import INTERNAL, tell_end
from engine.metrics import Metrics
from engine.policies import Queued
from engine.run import Run
from engine.stacks import authors_stack
from engine.store.journal import Commit
from runtimes.contract import GuestError, Limits, Outcome, Runtime

NODE = "nod_1"
NOW_MS = 1_000_000
_numbers = itertools.count(1)


def a_run(**fields: Any) -> Run:
    version = Version(
        id=f"ver_{next(_numbers)}",
        number=1,
        function_id="fn_1",
        function="f",
        project_id="prj_1",
        runtime=Runtime.JAVASCRIPT,
        program="",
        handlers=("main",),
        overrides={},
        allowed_hosts=(),
        bindings={},
    )
    given: dict[str, Any] = {
        "execution_id": f"exe_{next(_numbers)}",
        "version": version,
        "handler": "main",
        "cause": "invoke",
        "limits": Limits(cpu_ms=200, wall_ms=1_000, memory_mb=64, network_requests=0),
        "input": b"null",
        "created_ms": NOW_MS,
        "created_ns": 0,
        "root_id": "exe_root",
    }
    return Run(**(given | fields))


class PaperJournal:
    """Takes what is committed; the first `bad` times it fails as only a mistake of ours can."""

    def __init__(self, bad: int = 0) -> None:
        self.node_id = NODE
        self.bad = bad
        self.records: list[tuple[Any, ...]] = []
        self.commits: list[Commit] = []

    def gather(self, *_given: Any) -> None:
        """Nothing waits in a lane here."""

    def record(self, _table: Any, row: tuple[Any, ...], claim: str | None = None) -> None:
        self._fail()
        self.records.append((row, claim))

    def submit(self, commit: Commit) -> None:
        self._fail()
        self.commits.append(commit)

    def _fail(self) -> None:
        self.bad -= 1
        if self.bad >= 0:
            raise ValueError("a mistake of ours")


def settler(journal: PaperJournal, **given: Any) -> Settler:
    nothing: Any = SimpleNamespace(report=lambda _run: None)
    journal_given: Any = journal
    return Settler(
        journal_given, nothing, nothing, nothing, Metrics(),
        **{
            "start": lambda _runs: None, "start_again": lambda _run: None,
            "notice": lambda _ids: None, "wake": lambda *_row: None,
            "owner": lambda _project: None, "vault": nothing, "clock": lambda: NOW_MS,
            "rng": Random(1), "outbox_of": lambda: None,
        } | given,
    )  # fmt: skip


def told(run: Run) -> list[Run]:
    """Return the list that says how often the run's end has been told."""
    ends: list[Run] = []
    run.on_end = ends.append
    return ends


def test_a_stack_with_numbers_of_thousands_of_digits_stays_as_it_is() -> None:
    """A guest writes its stack: no number in it may be more than the engine, or a table, can read.

    Python refuses to read one of 5,000 digits, and one of 3,000 fits no column.
    """
    program = json.dumps({"files": [{"name": "m.js", "prefix_columns": 0}], "main": "m.js"})
    frames = [f"    at f (m.js:{'9' * digits}:1)" for digits in (5_000, 3_000, 10)]
    frames += ["    at f (m.js:\u0663:1)", "    at f (m.js:7:8)"]
    given = GuestError(name="Error", message="", stack="\n".join(frames))

    found = authors_stack(given, program)

    assert (found.file, found.line, found.column) == ("m.js", 7, 8)
    assert found.stack == given.stack


def test_a_call_that_cannot_be_settled_is_told_so() -> None:
    """Its caller must not wait for ever because we have made a mistake."""
    run = a_run(outcome=Outcome.SUCCEEDED, result=b"1")
    ends = told(run)

    settler(PaperJournal(bad=1)).settle(run)

    assert ends == [run]
    assert (run.outcome, run.unstored) == (Outcome.FAILED, True)
    assert run.error is not None
    assert run.error.name == INTERNAL


def test_a_queued_run_that_cannot_be_settled_ends_as_failed() -> None:
    """Without what its guest has made, as that is what could not be stored; its row goes."""
    run = a_run(
        outcome=Outcome.SUCCEEDED, queued=True, owner=NODE, log=[("warn", 0, "x")], result=b"1"
    )
    ends, journal = told(run), PaperJournal(bad=1)

    settler(journal).settle(run)

    ((record, claim),) = journal.records
    assert claim == run.execution_id
    assert Outcome.FAILED.value in record
    assert ends == [run]
    assert run.log == []


def test_a_queued_run_that_cannot_even_fail_leaves_memory() -> None:
    """Its row stays for the audit, and its bytes are given back."""
    run = a_run(outcome=Outcome.SUCCEEDED, queued=True, owner=NODE)
    ends = told(run)

    settler(PaperJournal(bad=2)).settle(run)

    assert ends == [run]


def test_what_follows_an_end_may_fail_and_its_caller_is_told() -> None:
    """A mistake in what comes after the record holds up nobody who waits."""
    run = a_run(outcome=Outcome.SUCCEEDED)
    ends = told(run)

    def fail(_runs: Any) -> None:
        raise ValueError("a mistake of ours")

    settler(PaperJournal(), start=fail).settle(run)

    assert ends == [run]
    assert run.outcome is Outcome.SUCCEEDED


def test_one_listener_that_fails_keeps_no_other_from_hearing() -> None:
    """Messages of a batch are told one by one, and then the batch itself."""
    first, second = a_run(), a_run()
    batch = a_run(messages=(first, second))

    def fail(_run: Run) -> None:
        raise ValueError("a mistake of ours")

    first.on_end = fail
    ends = told(second)
    batch.on_end = ends.append

    tell_end(batch)

    assert ends == [second, batch]


def test_an_ordered_run_that_is_put_off_keeps_its_place() -> None:
    """What the node has behind it in its lane goes back with it, and does not run before it."""
    policy = Queued(queue="q", order=True)
    run = a_run(queued=True, owner=NODE, lane="lane_1", policy=policy)
    ends, journal = told(run), PaperJournal()

    settler(journal).put_off(run, NOW_MS + 5)
    (commit,) = journal.commits
    assert commit.done is not None
    assert commit.change is not None
    assert commit.change.keywords["lane"] == "lane_1"  # type: ignore[attr-defined]  # a partial
    commit.done(None, None)

    assert run.retried
    assert ends == [run]


def test_the_log_is_not_cut_anew_at_each_try_to_store_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that waits for the database has one line that says how many lines it lost."""
    later: list[Any] = []
    loop = SimpleNamespace(call_later=lambda _seconds, step, run: later.append((step, run)))
    monkeypatch.setattr("asyncio.get_running_loop", lambda: loop)
    journal = PaperJournal()
    run = a_run(
        outcome=Outcome.FAILED, queued=True, owner=NODE, log_dropped=7, job_id="job_1",
        policy=Queued(queue="q"), error=GuestError(name="Error", message="x"),
    )  # fmt: skip

    settler(journal).settle(run)
    for _ in range(3):
        done = journal.commits[-1].done
        assert done is not None
        done(None, OSError("the disk is full"))
        step, same = later.pop()
        step(same)

    assert len(journal.commits) == 4
    assert len(run.log) == 1


def test_requests_of_attempts_before_leave_the_next_a_budget() -> None:
    """An attempt, or a cell, that was lost has sent its first request: no later one takes half."""
    left = []
    budget = 10_000
    for attempt in range(1, 16):
        run = a_run(attempt=attempt, budget=budget)
        for _ in range(2):
            run.via()
        run.start_again()
        run.via()
        budget = run.budget
        left.append(budget)

    assert left[0] > 4_700
    assert left[-1] > 1_000
    assert left == sorted(left, reverse=True)


class PaperDoor:
    """engine.admission.Admission: everybody may come in, and is counted out once."""

    def __init__(self) -> None:
        self.out: list[Run] = []
        self.shares = SimpleNamespace(take=lambda _version: [])

    def ended(self, run: Run) -> None:
        self.out.append(run)


@pytest.fixture
async def dispatcher() -> Dispatcher:
    nothing: Any = None
    door: Any = PaperDoor()
    clock: Any = lambda: NOW_MS  # noqa: E731 - a test sets it anew
    return Dispatcher(
        nothing, nothing, finish=lambda _run: None, on_log=lambda *_line: None, clock=clock,
        cells_max=4, cell_memory_mb=256, programs=nothing, is_hardened=lambda _project: False,
        admission=lambda _start: door,
    )  # fmt: skip


async def test_a_suspect_that_is_not_held_stays_one(dispatcher: Dispatcher) -> None:
    """It may have killed a cell: it does not go among the others because a breaker has opened."""
    bad = a_run()
    good = a_run(version=bad.version)
    guard: Any = SimpleNamespace(holds=lambda run: run is bad)
    dispatcher.guard = guard
    dispatcher._suspects = deque([bad, good])
    dispatcher.inflight = 2

    dispatcher.sift(bad.version.id)

    assert list(dispatcher._suspects) == [good]
    assert dispatcher.inflight == 1
    door: Any = dispatcher.admission
    assert door.out == [bad]


async def test_a_run_whose_end_goes_wrong_is_counted_out(dispatcher: Dispatcher) -> None:
    """The cell that told of it is not to blame, and lives on."""

    def fail(_run: Run) -> None:
        raise ValueError("a mistake of ours")

    dispatcher.finish = fail
    dispatcher.inflight = 1

    dispatcher.end(a_run(outcome=Outcome.SUCCEEDED))

    assert dispatcher.inflight == 0


async def test_a_clock_that_is_set_back_keeps_nobody_in_quarantine(dispatcher: Dispatcher) -> None:
    """And versions that are deployed no more are forgotten by the next one's coming."""
    first, second = a_run().version, a_run().version
    dispatcher.quarantine(first)
    assert list(dispatcher.quarantined()) == [first.id]

    dispatcher.clock = lambda: NOW_MS - 3_600_000
    assert dispatcher.quarantined() == {}
    dispatcher.clock = lambda: NOW_MS + QUARANTINE_MS
    dispatcher.quarantine(second)

    assert list(dispatcher._quarantined) == [second.id]
