"""When a version, or one device of it, is held back, and that nobody is for ever."""

import asyncio
from collections.abc import Container
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.breaker_rules import (
    DEVICES_MAX,
    FAILURES_MAX,
    HARM_MAX,
    LOOK_MS,
    OPEN_MS,
    OPEN_MS_MAX,
    PROJECT_VERSIONS_MAX,
    STREAK_MS,
    STREAKS_MAX,
    VERSIONS_MAX,
    WINDOW_MS,
    Failure,
    Next,
    Opening,
    Scope,
    Windows,
    after_trial,
    fingerprint,
    is_due,
    look_again_ms,
    open_ms,
)
from engine.breakers import Breakers
from engine.catalogue import Version
from engine.run import Run
from engine.store.breakers import Breaker
from runtimes.contract import Outcome, Runtime

KILLED = Outcome.CPU_EXCEEDED


@dataclass
class Story:
    """Runs of one version, told one after the other by a clock of its own."""

    windows: Windows
    now_ms: int = 1_000_000

    def kill(self, device: str = "", version: str = "v1", project: str = "p1") -> Opening | None:
        return self.fail(device, KILLED, has_killed=True, version=version, project=project)

    def fail(
        self,
        device: str = "",
        outcome: Outcome = Outcome.FAILED,
        message: str = "too hot",
        *,
        has_killed: bool = False,
        version: str = "v1",
        project: str = "p1",
    ) -> Opening | None:
        self.now_ms += 1
        failure = Failure(
            project_id=project,
            version_id=version,
            device_id=device,
            outcome=outcome,
            fingerprint=fingerprint(outcome, "Error", message),
            has_killed=has_killed,
        )
        return self.windows.failed(failure, self.now_ms)

    def succeed(self, device: str = "") -> None:
        self.now_ms += 1
        self.windows.succeeded("v1", device, self.now_ms)

    def wait(self, ms: int) -> None:
        self.now_ms += ms


@pytest.fixture
def story() -> Story:
    return Story(Windows())


def test_a_device_whose_runs_kill_is_set_aside_at_the_fifth(story: Story) -> None:
    """Four are bad luck; the fifth in a row, while others do well, is the device."""
    opened = []
    for _ in range(HARM_MAX):
        story.succeed("other")
        opened.append(story.kill("poisonous"))

    assert opened == [None] * (HARM_MAX - 1) + [Opening(Scope.DEVICE, HARM_MAX)]


def test_a_device_that_alone_writes_is_set_aside_and_not_the_function(story: Story) -> None:
    """Nobody else is there to tell whether the function is to blame: the smaller measure."""
    opened = [story.kill("only") for _ in range(HARM_MAX)]

    assert opened[-1] == Opening(Scope.DEVICE, HARM_MAX)


def test_a_device_that_is_alone_and_harms_nobody_is_not_set_aside(story: Story) -> None:
    """That may be the code, or what it calls: nobody is there to compare the device with."""
    opened = [story.fail("only", Outcome.TIMED_OUT) for _ in range(3 * HARM_MAX)]
    opened += [story.fail("only") for _ in range(3 * FAILURES_MAX)]

    assert set(opened) == {None}
    story.succeed("other")
    assert story.fail("only") == Opening(Scope.DEVICE, 3 * FAILURES_MAX + 1)


@given(st.integers(min_value=-10, max_value=10**6), st.integers(min_value=0, max_value=10**6))
def test_who_waits_for_a_trial_looks_soon_and_when_its_end_says(left_ms: int, passed: int) -> None:
    """In at most ten seconds; and whoever ends it knows the next two times that somebody looks."""
    end_ms = 10**9
    put_off_ms = end_ms - left_ms
    look_ms = look_again_ms(end_ms, put_off_ms)
    closed_ms = min(put_off_ms + passed % LOOK_MS, look_ms - 1)

    assert put_off_ms < look_ms <= put_off_ms + LOOK_MS
    if left_ms > 0:
        assert look_ms <= end_ms
        known_ms = look_again_ms(end_ms, closed_ms)
        assert look_ms in {known_ms, known_ms + LOOK_MS}


def test_a_success_in_between_starts_the_count_anew(story: Story) -> None:
    """A device that is well now and then is not set aside."""
    opened = []
    for _ in range(3):
        story.succeed("other")
        opened += [story.kill("shaky") for _ in range(HARM_MAX - 1)]
        story.succeed("shaky")
        story.wait(WINDOW_MS)

    assert opened == [None] * (3 * (HARM_MAX - 1))


def test_ordinary_errors_of_one_device_take_twenty_of_the_same(story: Story) -> None:
    """Numbers and ids in a message do not make it another error; another text does."""
    for number in range(FAILURES_MAX - 1):
        story.succeed("other")
        assert story.fail("odd", message=f"value {number} of dev_{number}ab is bad") is None

    assert story.fail("odd", message="value 77 of dev_9 is bad") == Opening(
        Scope.DEVICE, FAILURES_MAX
    )
    for _ in range(FAILURES_MAX - 1):
        assert story.fail("odd", message="value 1 of dev_9 is bad") is None
    assert story.fail("odd", message="something else") is None


def test_ordinary_errors_for_everybody_open_nothing(story: Story) -> None:
    """A thrown error harms nobody: users see it, and the function goes on."""
    opened = [story.fail(f"device-{n % 7}") for n in range(10 * FAILURES_MAX)]
    opened += [story.fail() for _ in range(10 * FAILURES_MAX)]

    assert set(opened) == {None}


def test_a_version_that_kills_for_all_is_held_back_at_the_fifth(story: Story) -> None:
    """Whoever asks; calls and events count alike."""
    opened = [story.kill(device) for device in ("", "one", "", "two", "three")]

    assert opened == [None] * (HARM_MAX - 1) + [Opening(Scope.FUNCTION, HARM_MAX)]


def test_a_version_that_mostly_does_well_is_not_held_back(story: Story) -> None:
    """Five kills among more than ten runs are less than half of them."""
    story.kill()
    for _ in range(HARM_MAX + 1):
        story.succeed()

    assert [story.kill() for _ in range(HARM_MAX - 1)] == [None] * (HARM_MAX - 1)


def test_kills_that_are_spread_over_time_open_nothing(story: Story) -> None:
    """Five within a minute count, not five a day."""
    for _ in range(4 * HARM_MAX):
        assert story.kill() is None
        story.wait(WINDOW_MS // (HARM_MAX - 1) + 1)


def test_what_a_device_is_blamed_for_is_not_the_versions_fault(story: Story) -> None:
    """Its kills count once: the first call that kills after that opens nothing."""
    for _ in range(HARM_MAX):
        story.succeed("other")
        story.kill("poisonous")

    assert story.kill() is None


def test_a_streak_that_is_long_ago_is_forgotten(story: Story) -> None:
    """A device that fails once a week is never set aside."""
    for _ in range(3 * HARM_MAX):
        story.succeed("other")
        assert story.kill("weekly") is None
        story.wait(STREAK_MS + 1)
    story.succeed()
    assert "v1" not in story.windows


@given(st.integers(min_value=1, max_value=10_000))
def test_no_breaker_stays_open_for_longer_than_the_most(openings: int) -> None:
    """However often it has opened: each wait has an end, and is no shorter than the one before."""
    assert OPEN_MS <= open_ms(openings) <= open_ms(openings + 1) <= OPEN_MS_MAX


@given(st.sampled_from(Scope), st.sampled_from(Outcome), st.booleans())
def test_each_trial_leads_somewhere(scope: Scope, outcome: Outcome, has_killed: bool) -> None:
    """Success closes; a trial that tells nothing is followed by another at once."""
    following = after_trial(scope, outcome, has_killed=has_killed)

    if outcome in {Outcome.CANCELLED, Outcome.SKIPPED}:
        assert following is Next.TRY
    elif outcome is Outcome.SUCCEEDED and not has_killed:
        assert following is Next.CLOSE
    elif has_killed and outcome not in {Outcome.SUCCEEDED, Outcome.REJECTED}:
        assert following is Next.OPEN


def test_a_thrown_error_closes_a_function_and_not_a_device() -> None:
    """A function was held back for the harm; a device for failing at all."""
    assert after_trial(Scope.FUNCTION, Outcome.FAILED, has_killed=False) is Next.CLOSE
    assert after_trial(Scope.DEVICE, Outcome.FAILED, has_killed=False) is Next.OPEN


_EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["", "a", "b", "c"]),
        st.sampled_from(["well", "fails", "kills"]),
        st.integers(min_value=0, max_value=30_000),
    ),
    max_size=200,
)


@given(_EVENTS)
def test_nothing_opens_without_enough_failures_since_the_last_time(
    events: list[tuple[str, str, int]],
) -> None:
    """A device needs its number in a row, a version its number of kills within a minute."""
    story = Story(Windows())
    in_a_row: dict[str, int] = {}
    kills: list[int] = []

    for device, what, wait_ms in events:
        story.wait(wait_ms)
        if what == "well":
            story.succeed(device)
            in_a_row[device] = 0
            continue
        opening = story.kill(device) if what == "kills" else story.fail(device)
        in_a_row[device] = in_a_row.get(device, 0) + 1
        kills = [at for at in kills if story.now_ms - at <= WINDOW_MS]
        kills += [story.now_ms] if what == "kills" else []
        if opening is None:
            continue
        if opening.scope is Scope.DEVICE:
            assert device
            assert in_a_row[device] >= HARM_MAX
        else:
            assert what == "kills"
            assert len(kills) >= HARM_MAX
            kills = []


def test_memory_is_bounded(story: Story) -> None:
    """Of more versions and devices than fit the oldest are forgotten, and no success is slow."""
    for number in range(VERSIONS_MAX + 10):
        story.kill(version=f"v{number}", project=f"p{number // 50}")
    for number in range(DEVICES_MAX + 10):
        story.fail(f"device-{number}", version="many", project="many")

    assert "v0" not in story.windows
    assert "v20" in story.windows
    assert len(story.windows._windows["many"].streaks) == DEVICES_MAX


def test_no_project_makes_what_others_did_be_forgotten(story: Story) -> None:
    """A thousand failing versions of one project take one another's place; those that kill stay."""
    story.kill(version="other", project="quiet")
    story.kill(version="first", project="loud")
    for number in range(VERSIONS_MAX):
        story.fail(version=f"v{number}", project="loud")

    assert "other" in story.windows
    assert "first" in story.windows
    assert "v0" not in story.windows
    assert len(story.windows._windows) == PROJECT_VERSIONS_MAX + 1


def test_devices_of_all_versions_together_are_bounded(story: Story) -> None:
    """Whoever has the most gives way; a device that has failed long ago is forgotten anyway."""
    for number in range(4):
        story.fail(f"few-{number}", version="few", project="quiet")
    for version in range(STREAKS_MAX // DEVICES_MAX + 2):
        for number in range(DEVICES_MAX):
            story.fail(f"device-{number}", version=f"v{version}")

    windows = story.windows._windows
    assert sum(len(window.streaks) for window in windows.values()) <= STREAKS_MAX
    assert len(windows["few"].streaks) == 4
    story.wait(STREAK_MS + 1)
    story.fail("new", version="few", project="quiet")
    assert list(windows["few"].streaks) == ["new"]


def test_a_clock_that_was_set_back_holds_nobody_for_longer() -> None:
    """An end that is further away than any can be, is due; one that can be, is waited for."""
    now_ms = 10**12

    assert is_due(now_ms, now_ms)
    assert not is_due(now_ms + OPEN_MS_MAX, now_ms)
    assert not is_due(now_ms + 15 * 60_000 + 30_000, now_ms)  # a trial of the longest job
    assert is_due(now_ms + 3_600_000, now_ms)


@dataclass
class PaperStore:
    """The breakers' database, journal and desk, of which the store knows no breaker."""

    trouble: Exception | None = None
    settled: list[Run] = field(default_factory=list)
    put_off: list[tuple[Run, int]] = field(default_factory=list)

    async def read(self, *_asked: Any) -> list[Any]:
        return []

    async def run(self, *_asked: Any) -> tuple[bool, list[Any]]:
        if self.trouble is not None:
            raise self.trouble
        return False, []

    def sift(self, _version_id: str) -> None:
        """Nothing waits."""


def breaker(version_id: str, **fields: Any) -> Breaker:
    given = {
        "id": "brk_1", "project_id": "prj_1", "function_id": "fn_1", "version_id": version_id,
        "device_id": "", "state": "open", "error": {"status": "crashed"}, "failures": 5,
        "openings": 1, "opened_ms": 0, "until_ms": 10**12,
    }  # fmt: skip
    return Breaker(**(given | fields))


def breakers(store: PaperStore, *held: Breaker, exceeded: Container[str] = ()) -> Breakers:
    paper: Any = store
    made = Breakers(
        paper, paper, paper,
        clock=lambda: 10**12, settle=store.settled.append,
        put_off=lambda run, due_ms: store.put_off.append((run, due_ms)),
        wake=lambda *_row: None, tell=lambda *_said: None, exceeded=exceeded,
    )  # fmt: skip
    for one in held:
        made._held.setdefault(one.version_id, {})[one.device_id] = one
    return made


def a_run(device: str = "") -> Run:
    version = Version(
        id="ver_1", number=1, function_id="fn_1", function="f", project_id="prj_1",
        runtime=Runtime.JAVASCRIPT, program="", handlers=("job",), overrides={}, allowed_hosts=(),
        bindings={},
    )  # fmt: skip
    whose: Any = SimpleNamespace(id=device) if device else None
    return Run(
        execution_id="exe_1", version=version, handler="job", cause="job",
        limits=version.limits("job"), input=b"null", created_ms=0, created_ns=0, root_id="exe_1",
        queued=True, device=whose,
    )  # fmt: skip


async def test_closing_the_breaker_of_another_project_changes_nothing() -> None:
    """It is answered that there is none, and this node holds back as before."""
    made = breakers(PaperStore(), breaker("ver_1", project_id="prj_b"))

    assert not await made.close_by_hand("prj_a", "brk_1")
    assert made._known("brk_1") is not None


async def test_a_trial_that_cannot_be_asked_for_loses_no_run() -> None:
    """Whatever goes wrong: the run is put off, and the next one may try."""
    store = PaperStore(trouble=ValueError("a mistake of ours"))
    made = breakers(store, breaker("ver_1", until_ms=0))
    run = a_run()

    assert made.holds(run)
    await asyncio.gather(*made._tasks)

    assert [one for one, _ in store.put_off] == [run]
    assert made._trying == set()


async def test_a_run_that_comes_while_the_engine_stops_is_put_off() -> None:
    """There is no time left for its trial, and its row must be free for another node."""
    store = PaperStore()
    made = breakers(store, breaker("ver_1", until_ms=0))
    await made.close()

    assert made.holds(a_run())
    assert len(store.put_off) == 1


async def test_who_has_used_up_its_cpu_gets_no_trial() -> None:
    """A trial is a run like others; it can wait until the project may use CPU again."""
    store = PaperStore()
    made = breakers(store, breaker("ver_1", until_ms=0), exceeded={"prj_1"})

    assert made.holds(a_run())
    assert made._tasks == set()
    assert [due_ms for _, due_ms in store.put_off] == [10**12 + OPEN_MS]


async def test_no_device_is_tried_while_its_function_is_held_back() -> None:
    """Its breaker is due, the version's is not: the run waits for that."""
    store = PaperStore()
    whole = breaker("ver_1", until_ms=10**12 + 5)
    device = breaker("ver_1", id="brk_2", device_id="dev_1", until_ms=0)
    made = breakers(store, whole, device)

    assert made.holds(a_run("dev_1"))
    assert made._trying == set()
    assert [due_ms for _, due_ms in store.put_off] == [whole.until_ms]
