"""When messages become a batch, and what a handler's word means for each of them."""

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest

from engine.batches import BATCH_BYTES_MAX, Batches, RetryAsked, as_batch, verdicts
from engine.catalogue import Version
from engine.policies import Batch, Policy, Queued
from engine.quotas import BACKOFF_S_MAX
from engine.run import Run
from runtimes.contract import Outcome, Runtime

NOW = 1_700_000_000_000
_numbers = itertools.count(1)


class Timers:
    """`loop.call_later` by hand."""

    def __init__(self) -> None:
        self.waiting: list[tuple[float, Callable[[], None], Timer]] = []

    def call_later(self, delay_s: float, work: Callable[[], None]) -> "Timer":
        timer = Timer()
        self.waiting.append((delay_s, work, timer))
        return timer

    def fire(self) -> list[float]:
        """Let all of them come; return their delays."""
        waiting = [item for item in self.waiting if not item[2].cancelled]
        self.waiting = []
        for _, work, _ in waiting:
            work()
        return [delay_s for delay_s, _, _ in waiting]


class Timer:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Desk:
    """What batches are sent to."""

    def __init__(self) -> None:
        self.timers = Timers()
        self.sent: list[Run] = []
        self.batches = Batches(self.sent.append, lambda: NOW, self.timers.call_later)

    def ids(self) -> list[list[str]]:
        return [[message.execution_id for message in batch.messages] for batch in self.sent]

    def end(self, batch: Run) -> None:
        assert batch.on_end is not None
        batch.on_end(batch)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def version_with(**settings: Any) -> Version:
    return Version(
        id=f"ver_{next(_numbers)}",
        number=1,
        function_id="fn_1",
        function="f",
        project_id="prj_1",
        runtime=Runtime.JAVASCRIPT,
        program="",
        handlers=("queue",),
        overrides={},
        allowed_hosts=(),
        bindings={},
        policy=Policy(batch=Batch(**settings) if settings else None),
    )


def message(version: Version, body: str = "null", queue: str = "default", **fields: Any) -> Run:
    return Run(
        **{
            "execution_id": f"exe_{next(_numbers)}",
            "version": version,
            "handler": "queue",
            "cause": "job",
            "limits": version.limits("queue"),
            "input": body.encode(),
            "created_ms": NOW - 5,
            "created_ns": 0,
            "root_id": "exe_root",
            "policy": Queued(queue=queue),
        }
        | fields
    )


def add(desk: Desk, version: Version, count: int, **fields: Any) -> list[str]:
    made = [message(version, **fields) for _ in range(count)]
    for one in made:
        desk.batches.add(one)
    return [one.execution_id for one in made]


def test_a_full_batch_goes_at_once(desk: Desk) -> None:
    """As soon as there are `max_batch_size`; what is over begins the next one."""
    ids = add(desk, version_with(max_batch_size=3), 7)

    assert desk.ids() == [ids[:3], ids[3:6]]


def test_the_first_message_waits_no_longer_than_the_timeout(desk: Desk) -> None:
    """The timeout counts from the first of them, once."""
    ids = add(desk, version_with(max_batch_size=10, max_batch_timeout_ms=250), 2)

    assert desk.ids() == []
    assert desk.timers.fire() == [0.25]
    assert desk.ids() == [ids]
    assert desk.timers.fire() == []


def test_versions_and_queues_are_not_mixed(desk: Desk) -> None:
    """A batch is of one version, and has one queue's name."""
    first, second = version_with(), version_with()
    ids = [add(desk, first, 1)[0], add(desk, second, 1)[0], add(desk, first, 1, queue="b")[0]]

    desk.timers.fire()

    assert desk.ids() == [[run_id] for run_id in ids]


def test_no_more_batches_than_allowed_are_at_work(desk: Desk) -> None:
    """What comes meanwhile gathers, and goes when one has ended."""
    ids = add(desk, version_with(max_batch_size=2, max_concurrency=1), 5)

    assert desk.ids() == [ids[:2]]
    desk.end(desk.sent[0])
    assert desk.ids() == [ids[:2], ids[2:4]]
    desk.timers.fire()
    assert len(desk.sent) == 2
    desk.end(desk.sent[1])
    assert desk.ids()[2:] == [ids[4:]]


def test_a_message_can_be_taken_back_while_it_waits(desk: Desk) -> None:
    """After that it is in no batch; one that has gone cannot be."""
    version = version_with(max_batch_size=3)
    first, second, third = add(desk, version, 3)
    fourth, fifth = add(desk, version, 2)

    assert not desk.batches.discard(first)
    assert desk.batches.discard(fourth)
    assert not desk.batches.discard(fourth)
    desk.timers.fire()
    assert desk.ids() == [[first, second, third], [fifth]]


def test_large_messages_go_in_several_batches(desk: Desk) -> None:
    """Bodies of one batch have an end; a message that is larger alone goes alone."""
    version = version_with(max_batch_size=4)
    body = json.dumps("x" * (BATCH_BYTES_MAX // 2))

    ids = add(desk, version, 4, body=body)

    desk.timers.fire()
    desk.timers.fire()
    desk.timers.fire()
    assert desk.ids() == [[run_id] for run_id in ids]


def test_a_batch_is_a_run_of_the_handler(desk: Desk) -> None:
    """Its input has the queue's name, and of each message what the handler shall know."""
    version = version_with(max_batch_size=2)
    first = message(version, '{"a":1}', "mail", job_id="job_1", attempt=3, depth=2)
    second = message(version, "2", "mail")

    desk.batches.add(first)
    desk.batches.add(second)

    batch = desk.sent[0]
    stamp = "2023-11-14T22:13:19.995Z"
    assert json.loads(batch.input) == {
        "queue": "mail",
        "messages": [
            {"id": "job_1", "timestamp": stamp, "body": {"a": 1}, "attempts": 3},
            {"id": second.execution_id, "timestamp": stamp, "body": 2, "attempts": 1},
        ],
    }
    assert (batch.handler, batch.cause, batch.depth) == ("queue", "job", 2)
    assert batch.root_id == "exe_root"
    assert batch.messages == (first, second)


def test_a_call_of_the_handler_is_one_message() -> None:
    """What it was called with is the body; a batch that is replayed stays what it was."""
    call = message(version_with(), '{"messages":[]}')

    call.input = as_batch(call)

    given = json.loads(call.input)
    assert given["queue"] == "default"
    assert [one["body"] for one in given["messages"]] == [{"messages": []}]
    assert as_batch(call) == call.input


def test_a_replay_waits_for_no_other(desk: Desk) -> None:
    """It is a run of its own."""
    desk.batches.add(message(version_with(), cause="replay"))

    assert len(desk.sent) == 1


def batch_that_said(result: str, outcome: Outcome = Outcome.SUCCEEDED) -> Run:
    version = version_with()
    batch = message(version)
    batch.messages = (message(version, job_id="job_1", execution_id="exe_1"),
                      message(version, execution_id="exe_2"))  # fmt: skip
    batch.result, batch.outcome = result.encode(), outcome
    return batch


@pytest.mark.parametrize(
    ("result", "first", "second"),
    [
        ('{"retry":[]}', None, None),
        ('{"retry":[{"id":"job_1"}]}', RetryAsked(), None),
        ('{"retry":[{"id":"exe_2","delaySeconds":1.5}]}', None, RetryAsked(delay_ms=1_500)),
        ('{"retry":[{"id":"exe_2","delay_seconds":0}]}', None, RetryAsked(delay_ms=0)),
        ('{"retry":[{"id":"job_1","delaySeconds":null}]}', RetryAsked(), None),
        ('{"retry":[{"id":"job_1","delaySeconds":-1}]}', RetryAsked(), None),
        ('{"retry":[{"id":"job_1","delaySeconds":true}]}', RetryAsked(), None),
        ('{"retry":[{"id":"job_1","delaySeconds":"9"}]}', RetryAsked(), None),
        ('{"retry":[{"id":"job_1","delaySeconds":1e300}]}',
         RetryAsked(delay_ms=BACKOFF_S_MAX * 1000), None),
        ('{"retry":[{"id":"exe_1"},{"id":7},null,"exe_2",{}]}', None, None),
        ('{"retry":{"id":"job_1"}}', None, None),
        ("[]", None, None),
        ("null", None, None),
        ('{"retry":[{"id":"job_1","delaySeconds":1e999}]}', None, None),
        ("[" * 100_000, None, None),
        ("not JSON", None, None),
    ],
)  # fmt: skip
def test_what_the_handler_says(
    result: str, first: RetryAsked | None, second: RetryAsked | None
) -> None:
    """Only what it clearly asks for comes again, whatever else its result is."""
    assert verdicts(batch_that_said(result)) == {"exe_1": first, "exe_2": second}


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.TIMED_OUT, Outcome.CRASHED])
def test_a_batch_that_failed_comes_again_whole(outcome: Outcome) -> None:
    """Whatever it had said before: nothing that it did has happened."""
    asked = verdicts(batch_that_said('{"retry":[]}', outcome))

    assert asked == {"exe_1": RetryAsked(), "exe_2": RetryAsked()}


def test_a_batch_has_an_origin_of_its_own(desk: Desk) -> None:
    """Of its messages: others of the same run are another one, and these again the same."""
    version = version_with(max_batch_size=2)
    first, second, third, fourth = (
        {"origin": f"via_{'0' * 31}{number}"} for number in range(4)
    )  # what one run has caused

    for fields in (first, second, third, fourth, second, first):
        desk.batches.add(message(version, **fields))

    one, other, again = (batch.origin for batch in desk.sent)
    assert one == again != other
