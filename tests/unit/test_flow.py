"""What flow control decides, without a store: keys, lanes, rates."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.flow import (
    Candidate,
    Mark,
    decide,
    due_at,
    past_gates,
    queued_for,
    rate_limited,
    throttled,
)
from engine.policies import (
    NONE,
    PLAIN,
    Backoff,
    Concurrency,
    Debounce,
    Flow,
    Policy,
    Queued,
    RateLimit,
    Retries,
    Singleton,
    Throttle,
    read_queued,
    write_queued,
)

NOW = 1_700_000_000_000


def lane_of(key: str, given: str, scope: str = "function") -> str | None:
    concurrency = Concurrency(limit=1, key=key, scope=scope)
    return queued_for(Policy(flow=Flow(concurrency=concurrency)), given, "prj_1", "fn_1")[1]


@pytest.mark.parametrize(
    ("key", "given", "lane"),
    [
        ("", '{"a":1}', "c:fn_1"),
        ("a", '{"a":1}', "c:fn_1:1"),
        ("event.a", '{"a":1}', "c:fn_1:1"),
        ("payload.a", '{"a":1}', "c:fn_1:1"),
        ("a", '{"a":"1"}', 'c:fn_1:"1"'),
        ("a.b.1", '{"a":{"b":[1,{"y":2,"x":1}]}}', 'c:fn_1:{"x":1,"y":2}'),
        ("a.b.2", '{"a":{"b":[1,2]}}', "c:fn_1:null"),
        ("a", '{"a":null}', "c:fn_1:null"),
        ("a", "7", "c:fn_1:null"),
        ("a", "not JSON", "c:fn_1:null"),
        ("a", '{"a":123456789012345678901234567890}', "c:fn_1:123456789012345678901234567890"),
        ("'all of us'", "{}", "c:fn_1:all of us"),
        ("a", '{"a":"' + "x" * 500 + '"}', None),
    ],
)
def test_a_key_is_a_path_into_the_input(key: str, given: str, lane: str | None) -> None:
    """Values that differ have lanes that differ; one that is missing counts as null."""
    found = lane_of(key, given)

    assert found == lane or (lane is None and found is not None and len(found) < 80)


def test_the_lane_of_a_project_names_no_function() -> None:
    """Whoever has the same value shares it."""
    assert lane_of("a", '{"a":1}', "project") == "c:prj_1:1"


def test_a_version_without_a_policy_costs_nothing() -> None:
    """What the caller has decided stays as it is, and there is no lane."""
    own = Queued(max_attempts=5)

    assert queued_for(NONE, "{}", "prj_1", "fn_1") == (PLAIN, None)
    assert queued_for(NONE, "{}", "prj_1", "fn_1", base=own) == (own, None)


def test_retries_are_the_versions_unless_the_caller_says() -> None:
    """A version that declares retries gets dead letters with them."""
    policy = Policy(retries=Retries(max_attempts=4, backoff=Backoff(kind="fixed")))

    queued, _ = queued_for(policy, "{}", "prj_1", "fn_1")
    said, _ = queued_for(policy, "{}", "prj_1", "fn_1", base=Queued(max_attempts=2))

    assert queued == Queued(max_attempts=4, backoff=Backoff(kind="fixed"), dead_letter=True)
    assert said == Queued(max_attempts=2)


def test_marks_are_the_functions_own() -> None:
    """The limits of a run carry the names of their marks, and survive the queue's table."""
    flow = Flow(
        throttle=Throttle(limit=1, period_ms=1, key="a"),
        rate_limit=RateLimit(limit=1, period_ms=1),
        debounce=Debounce(period_ms=5, key="b"),
        singleton=Singleton(key="a"),
    )

    queued, lane = queued_for(Policy(flow=flow), '{"a":1,"b":2}', "prj_1", "fn_1")

    assert queued.flow is not None
    keys = [
        gate.key
        for gate in (queued.flow.throttle, queued.flow.rate_limit, queued.flow.debounce)
        if gate is not None
    ]
    assert keys == ["t:fn_1:1", "r:fn_1", "d:fn_1:2"]
    assert lane == "c:fn_1:1"
    assert read_queued(write_queued(queued)) == queued


def test_a_debounced_run_waits_for_its_quiet() -> None:
    """Also one that is for later; one that was let through before does not."""
    queued, _ = queued_for(Policy(flow=Flow(debounce=Debounce(period_ms=5))), "{}", "prj", "fn")

    assert due_at(queued, NOW) == NOW + 5
    assert due_at(queued, NOW, NOW + 9) == NOW + 9
    assert due_at(past_gates(queued), NOW, NOW + 1) == NOW + 1
    assert due_at(PLAIN, NOW) == 0


rates = st.tuples(st.integers(1, 50), st.integers(1, 100_000)).filter(lambda it: it[0] <= it[1])


@given(rate=rates, burst=st.integers(0, 5), gaps=st.lists(st.integers(0, 5_000), max_size=60))
def test_a_throttle_gives_places_that_no_period_has_too_many_of(
    rate: tuple[int, int], burst: int, gaps: list[int]
) -> None:
    """In no period begin more than `limit + burst`, and each run begins as soon as it may."""
    throttle = Throttle(limit=rate[0], period_ms=rate[1], burst=burst)
    mark: Mark | None = None
    begins: list[int] = []
    now_ms = NOW
    for gap in gaps:
        now_ms += gap
        begin_ms, mark = throttled(mark, throttle, now_ms)
        assert begin_ms >= now_ms
        begins.append(begin_ms)

    assert begins == sorted(begins)
    for at, begin_ms in enumerate(begins):
        within = [other for other in begins[at:] if other < begin_ms + throttle.period_ms]
        assert len(within) <= throttle.limit + burst


@given(rate=rates, count=st.integers(1, 300))
def test_a_throttle_does_not_drift(rate: tuple[int, int], count: int) -> None:
    """Of runs that all wait, number n begins at n/limit periods, to the millisecond."""
    throttle = Throttle(limit=rate[0], period_ms=rate[1])
    mark: Mark | None = None
    for number in range(count):
        begin_ms, mark = throttled(mark, throttle, NOW)

        assert 0 <= begin_ms - NOW - number * throttle.period_ms / throttle.limit < 1


@given(rate=rates, gaps=st.lists(st.integers(0, 5_000), max_size=60))
def test_a_rate_limit_lets_through_what_a_bucket_would(
    rate: tuple[int, int], gaps: list[int]
) -> None:
    """A bucket of `limit`, one more each period/limit: what it refuses costs nothing."""
    limit, period_ms = rate
    mark: Mark | None = None
    level = limit * period_ms  # in parts of a run, so that it stays whole
    now_ms = NOW
    for gap in gaps:
        now_ms += gap
        level = min(limit * period_ms, level + gap * limit)

        after = rate_limited(mark, RateLimit(limit=limit, period_ms=period_ms), now_ms)

        assert (after is not None) == (level >= period_ms)
        if after is not None:
            mark, level = after, level - period_ms


def test_a_clock_that_was_wrong_keeps_nobody_waiting() -> None:
    """A mark from the future is no mark: the clock was set back."""
    queued, _ = queued_for(
        Policy(flow=Flow(throttle=Throttle(limit=1, period_ms=1_000))), "{}", "prj_1", "fn_1"
    )
    wrong = Mark(since_ms=NOW + 10**9, free_ms=NOW + 10**9 + 1_000, touched_ms=NOW + 10**9)

    made = decide([candidate(queued)], {}, {"t:fn_1": wrong}, "node_a", NOW)

    assert made.admitted.claim == ["exe_1"]


def candidate(policy: Queued) -> Candidate:
    return Candidate(
        id="exe_1",
        project_id="prj_1",
        function_id="fn_1",
        lane=None,
        position_ms=None,
        policy=policy,
        created_ms=NOW,
        due_ms=NOW,
        event_id=None,
        device_id=None,
        job_id=None,
        attempt=1,
    )
