"""Whose run goes to a cell next: shares by CPU, order, and counts that come back to nothing."""

from collections import Counter
from collections.abc import Mapping
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from engine.allowances import FIELDS, Effective
from engine.catalogue import Version
from engine.fair_share import CALLS_WAITING_MAX, FLOOR, OUTSIDE, FairShare
from engine.run import Run
from runtimes.contract import Limits, Outcome, Runtime

MS = 1_000_000
NO_LIMITS = Effective(**dict.fromkeys(FIELDS, 0))
TEN = 0.10  # of its share: how far off a project may be over a long time


class Node:
    """A node's cells, as far as the door to them knows: runs go in, cost CPU and come out."""

    def __init__(
        self, *, runs_max: int, concurrency: Mapping[str, int] | None = None, floor: int = 0
    ) -> None:
        self.concurrency = concurrency or {}
        self.held_back: set[str] = set()
        self.shares = FairShare(
            lambda project_id: replace(NO_LIMITS, concurrency=self.concurrency.get(project_id, 0)),
            self.held_back,
            runs_max=runs_max,
            floor=floor,
        )
        self.versions: dict[str, Version] = {}
        self.inside: list[Run] = []
        self.begun: list[Run] = []
        self.spent_ms: Counter[str] = Counter()
        self._count = 0

    def run(self, project_id: str, *, queued: bool = True, now_ns: int = 0) -> Run:
        version = self.versions.get(project_id)
        if version is None:
            version = self.versions[project_id] = Version(
                id=f"ver_{project_id}",
                number=1,
                function_id=f"fn_{project_id}",
                function="f",
                project_id=project_id,
                runtime=Runtime.JAVASCRIPT,
                program="{}",
                handlers=("main",),
                overrides={},
                allowed_hosts=(),
                bindings={},
            )
        self._count += 1
        return Run(
            execution_id=f"exe_{self._count:09}",
            version=version,
            handler="main",
            cause="invoke",
            limits=Limits(cpu_ms=200, wall_ms=1_000, memory_mb=64, network_requests=0),
            input=b"null",
            created_ms=0,
            created_ns=now_ns,
            root_id="",
            queued=queued,
        )

    def submit(self, project_id: str, *, queued: bool = True) -> Run:
        run = self.run(project_id, queued=queued)
        if self.shares.admit(run):
            self._begin(run)
        return run

    def end(self, run: Run, cpu_ms: float) -> None:
        self.inside.remove(run)
        run.cpu_ns = int(cpu_ms * MS)
        self.spent_ms[run.project_id] += int(cpu_ms)
        self.shares.left(run)
        if self.shares.waiting_count:  # as `Admission.ended` does
            self.release()

    def release(self) -> None:
        for run in self.shares.release():
            self._begin(run)

    def lift(self) -> None:
        self.shares.recheck()
        self.release()

    def _begin(self, run: Run) -> None:
        run.started_ns = 1
        self.inside.append(run)
        self.begun.append(run)


@settings(max_examples=40, deadline=None)
@given(
    costs=st.lists(st.integers(5, 200), min_size=2, max_size=5),
    runs_max=st.integers(1, 32),
    seed=st.integers(0, 1_000_000),
)
def test_projects_that_wait_get_the_same_cpu(costs: list[int], runs_max: int, seed: int) -> None:
    """Whatever a project's runs cost and in which order they end, none gets 10 % more or less."""
    node, chance = Node(runs_max=runs_max), Random(seed)
    names = [f"prj_{at}" for at in range(len(costs))]
    cost_of = dict(zip(names, costs, strict=True))
    share_ms = 1_000 + 10 * runs_max * max(costs) // len(costs)
    for name in names:
        for _ in range(2 * share_ms // cost_of[name] + runs_max):
            node.submit(name)

    while sum(node.spent_ms.values()) < share_ms * len(names):
        run = chance.choice(node.inside)
        node.end(run, cost_of[run.project_id])

    assert not any(count == 0 for count in node.shares.waiting().values())
    assert len(node.shares.waiting()) == len(names), "one of them had nothing left to run"
    begun_ms = Counter(dict.fromkeys(names, 0))
    for run in node.begun:
        begun_ms[run.project_id] += cost_of[run.project_id]
    mean_ms = sum(begun_ms.values()) / len(names)
    slack_ms = max(costs) + 10  # a turn is not cut in the middle of a run
    for name in names:
        assert abs(begun_ms[name] - mean_ms) <= TEN * mean_ms + slack_ms, begun_ms


def test_a_flood_of_heavy_runs_starves_nobody() -> None:
    """A project with 10,000 runs of 200 ms waits; another one's ten of 1 ms are through soon."""
    node = Node(runs_max=16)
    for _ in range(10_000):
        node.submit("flood")
    light = [node.submit("light") for _ in range(10)]

    ended = 0
    while any(run in node.inside or run not in node.begun for run in light):
        run = node.inside[0]
        node.end(run, 200 if run.project_id == "flood" else 1)
        ended += 1

    assert ended <= 16 + 10 + 3


def test_a_project_with_next_to_nothing_in_cells_is_let_in_although_the_node_is_full() -> None:
    """So nobody's first runs wait for somebody else's long ones."""
    node = Node(runs_max=20, floor=FLOOR)
    for _ in range(100):
        node.submit("flood")

    late = [node.submit("late") for _ in range(FLOOR + 1)]

    assert [run in node.inside for run in late] == [True] * FLOOR + [False]


@settings(deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "c"]),
            st.sampled_from(["queue", "call", "end", "cancel", "hold"]),
            st.integers(0, 50),
        ),
        max_size=300,
    ),
    runs_max=st.integers(1, 8),
    floor=st.integers(0, 2),
)
def test_every_run_is_let_in_once_or_taken_out_and_the_counts_come_back_to_nothing(
    steps: list[tuple[str, str, int]], runs_max: int, floor: int
) -> None:
    """Whatever is submitted, ended, cancelled and held back in whichever order."""
    node = Node(runs_max=runs_max, concurrency={"a": 3, "b": 1}, floor=floor)
    submitted: list[Run] = []
    cancelled: list[Run] = []
    for project_id, step, number in steps:
        if step in ("queue", "call"):
            submitted.append(node.submit(project_id, queued=step == "queue"))
        elif step == "end" and node.inside:
            node.end(node.inside[number % len(node.inside)], number)
        elif step == "cancel" and submitted:
            run = submitted[number % len(submitted)]
            if node.shares.forget(run):
                cancelled.append(run)
        elif step == "hold":
            node.held_back.symmetric_difference_update({project_id})
            node.lift()
        inside = Counter(run.project_id for run in node.inside)
        assert inside["a"] <= 3
        assert inside["b"] <= 1
        assert node.shares.inside_count == len(node.inside)
        assert len(node.inside) <= runs_max + 3 * floor

    node.held_back.clear()
    node.lift()
    while node.inside:
        node.end(node.inside[0], 1)

    assert node.shares.inside_count == node.shares.waiting_count == 0
    assert node.shares.waiting() == {}
    assert {run.charged_ns for run in submitted} <= {OUTSIDE}
    ran = Counter(run.execution_id for run in node.begun)
    assert set(ran.values()) <= {1}
    assert sorted([*ran, *(run.execution_id for run in cancelled)]) == sorted(
        run.execution_id for run in submitted
    )


def test_the_order_within_a_project_is_kept_and_calls_go_first() -> None:
    """Somebody waits for a call; what is queued can wait, in its order."""
    node = Node(runs_max=1)
    first = node.submit("a")
    queued = [node.submit("a") for _ in range(5)]
    calls = [node.submit("a", queued=False) for _ in range(3)]

    while node.inside:
        node.end(node.inside[0], 5)

    assert node.begun == [first, *calls, *queued]


def test_a_project_that_is_held_back_waits_and_others_pass() -> None:
    """Its CPU budget is used up: nothing of it begins, nothing of it is lost."""
    node = Node(runs_max=100)
    node.held_back.add("spent")
    waiting = [node.submit("spent") for _ in range(3)]

    other = node.submit("other")
    began_before = list(node.begun)
    node.held_back.clear()
    node.lift()

    assert began_before == [other]
    assert node.begun == [other, *waiting]


def test_a_call_waits_no_longer_than_it_might_have_run() -> None:
    """Queued runs wait for as long as it takes."""
    node = Node(runs_max=1)
    node.submit("a")
    queued, call = node.submit("a"), node.submit("a", queued=False)

    early = node.shares.overdue(1_000 * MS)
    late = node.shares.overdue(1_200 * MS)

    assert (early, late) == ([], [call])
    assert node.shares.waiting() == {"a": 1}
    assert node.shares.forget(queued)


def test_calls_that_wait_are_counted() -> None:
    """One more than CALLS_WAITING_MAX is to be refused at once; queued runs do not count."""
    node = Node(runs_max=1)
    for _ in range(CALLS_WAITING_MAX):
        node.submit("a")
        node.submit("a", queued=False)
    before = node.shares.calls_full("a")
    node.submit("a", queued=False)

    assert (before, node.shares.calls_full("a")) == (True, True)
    assert not node.shares.calls_full("b")


def test_a_run_that_is_killed_for_its_cpu_costs_its_limit() -> None:
    """A cell that dies has no time to say what its run has used."""
    run = Node(runs_max=1).run("a")
    run.cpu_ns, run.outcome = 3 * MS, Outcome.CPU_EXCEEDED

    assert run.spent_ns == 200 * MS


def test_what_is_forgotten_at_a_full_node_leaves_no_line_that_waits_for_nothing() -> None:
    """A project whose line has emptied goes straight in: no run's end would come to let it in."""
    node = Node(runs_max=20, floor=2)
    busy = [node.submit("y") for _ in range(20)]
    more = [node.submit("y") for _ in range(5)]
    light = [node.submit("x") for _ in range(3)]
    for run in busy[:3]:
        node.end(run, 1)
    node.end(light[0], 1)
    for run in more:
        node.shares.forget(run)
    for run in tuple(node.inside):
        node.end(run, 1)

    late = node.submit("x")

    assert node.shares.waiting() == {}
    assert late in node.inside


def test_a_flood_of_calls_keeps_no_queued_run_of_its_project_waiting() -> None:
    """Every fourth turn is a queued run's, however many calls come in the meantime."""
    node = Node(runs_max=64, concurrency={"a": 4})
    for _ in range(4):
        node.submit("a", queued=False)
    queued = [node.submit("a") for _ in range(10)]

    for _ in range(4 * len(queued)):
        node.submit("a", queued=False)
        node.end(node.inside[0], 1)

    assert all(run in node.begun for run in queued)


def test_nobody_runs_into_debt_for_those_that_may_not_run_anyway() -> None:
    """A project that is held back waits; who has the node to himself owes nobody for that."""
    node = Node(runs_max=64)
    node.held_back.add("spent")
    node.submit("spent")
    for _ in range(1_000):
        node.end(node.submit("a"), 10)
    for _ in range(32):
        node.submit("a")
        node.submit("b")
    for _ in range(400):
        node.submit("a")
        node.submit("b")

    node.spent_ms.clear()
    while sum(node.spent_ms.values()) < 4_000:
        node.end(node.inside[0], 10)

    assert node.spent_ms["a"] >= 1_500, node.spent_ms


def test_projects_that_are_held_back_cost_the_others_nothing() -> None:
    """They are asked after when they come, not each time a run of somebody else ends."""

    asked: Counter[str] = Counter()

    class HeldBack(set[str]):
        def __contains__(self, project_id: object) -> bool:
            asked[str(project_id)] += 1
            return super().__contains__(project_id)

    node, held_back = Node(runs_max=2), HeldBack(f"prj_{at}" for at in range(100))
    node.shares = FairShare(lambda _: NO_LIMITS, held_back, runs_max=2, floor=0)
    for project_id in sorted(held_back):
        node.submit(project_id)
    for _ in range(10):
        node.submit("a")
    asked.clear()
    while node.inside:
        node.end(node.inside[0], 1)

    assert set(asked) == {"a"}
    assert len(node.shares.waiting()) == len(held_back)


def test_a_project_whose_concurrency_was_raised_is_let_in_without_an_end() -> None:
    """All that is parked is looked at now and then: nothing says that an allowance has changed."""
    concurrency = {"a": 1}
    node = Node(runs_max=8, concurrency=concurrency)
    runs = [node.submit("a") for _ in range(3)]

    concurrency["a"] = 3
    node.shares.overdue(2_000 * MS)
    node.release()

    assert node.begun == runs
