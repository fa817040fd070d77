"""How much one root event may cause: shares that can never be more than the whole."""

from collections import deque
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.causality import (
    Above,
    LoopDetected,
    first_share,
    outside_share,
    path_below,
    read_via,
    share_below,
    share_of,
    together,
    via,
)
from engine.quotas import CALL_DEPTH_MAX, CAUSAL_BUDGET, TRIGGER_DEPTH_MAX

PATH = " > ".join("ab" * 4)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), budget=st.integers(0, 400))
def test_a_tree_of_runs_is_never_larger_than_its_budget(seed: int, budget: int) -> None:
    """Whatever each run calls, triggers and sends outside: all below the root are in the budget."""
    chance = Random(seed)
    runs = deque([budget])
    made = 0

    while runs:
        left = runs.popleft()
        for number in range(1, chance.randint(0, 4)):
            share = outside_share(left, number)
            left -= share
            if share:  # it comes back, as a run with what is left of the share
                runs.append(share - 1)
                made += 1
        called = min(left, chance.randint(0, 5))
        triggered = chance.randint(0, 5)
        part = share_of(left, depth=1, path="a", called=called, triggered=triggered)
        children = called + sum(part.take() for _ in range(triggered))
        assert children == called + min(triggered, left - called)
        runs += [part.each] * children
        made += children

    assert made <= budget


@given(triggered=st.integers(1, CAUSAL_BUDGET + 50))
def test_a_write_shares_its_budget_among_what_it_triggers(triggered: int) -> None:
    """The runs themselves count; more than the budget are not made."""
    share = first_share(triggered)
    made = sum(share.take() for _ in range(triggered))

    assert made == min(triggered, CAUSAL_BUDGET)
    assert made + made * share.each <= CAUSAL_BUDGET
    assert bool(share.stopped) == (triggered > CAUSAL_BUDGET)


def test_what_is_too_deep_is_called_and_not_triggered() -> None:
    """Writes end five deep, calls eight deep; the reason names the way."""
    share = share_of(100, depth=TRIGGER_DEPTH_MAX + 1, path=PATH, called=1, triggered=1)

    assert not share.take()
    assert share.stopped == (f"triggers nothing: 6 functions deep, at most 5 are: {PATH}")
    assert share.each == 99


def test_what_is_beyond_the_budget_names_the_way() -> None:
    """And the run's own share with what is used of it: 99 of each of a hundred runs."""
    share = share_of(first_share(100).each, depth=2, path="a > b", called=1, triggered=99)

    assert sum(share.take() for _ in range(99)) == 98
    assert "this run's share of them is 99, of which 99 are used" in share.stopped
    assert share.stopped.endswith(": a > b")


def test_a_path_has_the_last_names() -> None:
    """It is kept with every queued run, so it does not grow."""
    path = ""
    for at in range(CALL_DEPTH_MAX + 5):
        path = path_below(path, f"f{at}")

    assert path.split(" > ") == [f"f{at}" for at in range(4, CALL_DEPTH_MAX + 5)]
    assert read_via(via("exe_1", 1, 1, path)) == Above(depth=1, budget=1, path=path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "exe_1",
        'exe_1;depth=-1;budget=1;path="a"',
        'exe_1;depth=1;budget=1;path=""',
        'exe_1;depth=1;budget=1;path="a > "',
        f'exe_1;depth=1;budget=1;path="{"a" * 65}"',
        f'exe_1;depth=1;budget=1;path="{" > ".join("a" * 10)}"',
        'exe_1;depth=1;budget=1;path="a";more',
        'exe_1;depth=1111;budget=1;path="a"',
        'exe_1;depth=٣;budget=1;path="a"\n',
    ],
)
def test_what_we_have_not_written_says_nothing(text: str) -> None:
    """A stranger's header is as if it were not there; nothing of it is shown to anybody."""
    assert read_via(text) is None


def test_a_forged_header_gives_nothing() -> None:
    """More budget than anybody has is cut; the root that it names is not even read."""
    forged = read_via(via("exe_of_another_tenant", 0, 999_999, "a"))

    assert forged is None or forged.budget == CAUSAL_BUDGET
    assert read_via(via("exe_1", 0, 999_999, "a")) == Above(depth=0, budget=CAUSAL_BUDGET, path="a")


@pytest.mark.parametrize(
    ("above", "why"),
    [
        (Above(depth=TRIGGER_DEPTH_MAX, budget=9, path=PATH), "5 functions deep; the most is 5"),
        (Above(depth=1, budget=0, path=PATH), "what its root event may cause is used up"),
        (Above(depth=1, budget=2, path=PATH), "what its root event may cause is used up"),
    ],
    ids=["depth", "nothing left", "not enough left"],
)
def test_a_request_that_has_come_back_too_often(above: Above, why: str) -> None:
    """The way is named; a request is served whole or not at all."""
    with pytest.raises(LoopDetected) as refused:
        share_below(above, triggered=3)

    assert PATH in str(refused.value)
    assert why in str(refused.value)


def test_a_chain_of_single_requests_may_be_as_deep_as_calls() -> None:
    """The first request of a run takes half of what is left, so eight of them are not too many."""
    budget = CAUSAL_BUDGET
    for _ in range(CALL_DEPTH_MAX):
        budget = outside_share(budget, 1) - 1

    assert budget > 0


def test_a_run_may_send_as_many_requests_as_its_limit_allows() -> None:
    """200 of a job: each of them may come back as a run."""
    left = CAUSAL_BUDGET
    for number in range(1, 201):
        share = outside_share(left, number)
        left -= share
        assert share >= 1

    assert left >= 0


def test_a_batch_has_the_budgets_of_its_messages() -> None:
    """Together, and never more than one event has."""
    assert together([5, 7]) == 12
    assert together([CAUSAL_BUDGET] * 3) == CAUSAL_BUDGET
