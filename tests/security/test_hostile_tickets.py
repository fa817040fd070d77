"""Whoever can write to Redis can lose tickets or make them up; he cannot have anything run."""

import json
import pickle
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from rq import Callback, Queue
from rq.serializers import JSONSerializer

from jobs.rq_tickets import HANDLER, queue_name
from jobs.tickets import Ticket
from tests.standins.servers import Redis
from tests.standins.ticket_ends import Ends, rq_ends

GOOD = Ticket("prj_good", 1)
NODE = "node_under_attack"


@pytest.fixture
async def ends(redis_server: Redis) -> AsyncIterator[Ends]:
    async with rq_ends(redis_server.url, NODE) as opened:
        opened.tickets.issue(Ticket("prj_first", 1))
        await opened.next()
        yield opened


class Push:
    """Puts into the default queue what an attacker likes, with RQ or without."""

    def __init__(self, server: Redis, ends: Ends) -> None:
        self._server = server
        self.queue_name = queue_name(ends.prefix, 1)

    def job(self, function: str, *args: Any, serializer: Any = JSONSerializer, **more: Any) -> None:
        with self._server.client() as client:
            queue = Queue(self.queue_name, connection=client, serializer=serializer)
            queue.enqueue_call(function, args=args, **more)

    def data(self, data: bytes, **fields: str) -> None:
        """Push a job whose call is these bytes."""
        job_id = uuid4().hex
        with self._server.client() as client:
            client.hset(f"rq:job:{job_id}", mapping={"data": data, "status": "queued", **fields})
            client.rpush(f"rq:queue:{self.queue_name}", job_id)

    def call(self, *call: Any) -> None:
        self.data(zlib.compress(json.dumps(call).encode()))

    def counts(self) -> tuple[int, int]:
        """Return how many jobs RQ shows as finished and as failed."""
        with self._server.client() as client:
            queue = Queue(self.queue_name, connection=client, serializer=JSONSerializer)
            return queue.finished_job_registry.count, queue.failed_job_registry.count


@pytest.fixture
def push(redis_server: Redis, ends: Ends) -> Push:
    return Push(redis_server, ends)


async def only_the_good_one_is_taken(ends: Ends) -> None:
    ends.tickets.issue(GOOD)
    assert await ends.until(GOOD) == []
    ends.tickets.issue(GOOD)  # by now the worker has reported on everything before
    await ends.next()


async def test_a_function_that_is_not_ours_is_not_called(
    ends: Ends, push: Push, tmp_path: Path
) -> None:
    """A plain RQ worker would run this command."""
    sentinel = tmp_path / "run"

    push.job("os.system", f"touch {sentinel}")
    push.job("subprocess.call", ["touch", str(sentinel)])

    await only_the_good_one_is_taken(ends)
    assert not sentinel.exists()
    assert push.counts()[1] == 2


async def test_a_pickle_is_not_opened(ends: Ends, push: Push, tmp_path: Path) -> None:
    """Reading one is enough to run what is in it."""
    sentinel = tmp_path / "run"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (sentinel,)

    push.job(HANDLER, "prj_bad", 1, serializer=pickle, meta={"bomb": Bomb()})
    push.job(HANDLER, Bomb(), 1, serializer=pickle)
    push.data(pickle.dumps(Bomb()))
    push.data(zlib.compress(pickle.dumps(Bomb())), result=pickle.dumps(Bomb()).decode("latin-1"))

    await only_the_good_one_is_taken(ends)
    assert not sentinel.exists()
    assert push.counts()[1] == 4


async def test_what_a_ticket_names_besides_is_not_called(
    ends: Ends, push: Push, tmp_path: Path
) -> None:
    """Callbacks, repetitions and the like of a good ticket are not even read."""
    sentinel = tmp_path / "run"
    with push._server.client() as client:
        queue = Queue(push.queue_name, connection=client, serializer=JSONSerializer)
        job = queue.enqueue_call(
            HANDLER,
            args=("prj_named", 1),
            on_success=Callback("os.system"),
            on_failure=Callback("os.system"),
        )
        client.hset(job.key, mapping={"repeats_left": "5", "repeat_intervals": "[0]"})
        client.hset(job.key, mapping={"retries_left": "5", "description": f"touch {sentinel}"})

    assert await ends.next() == Ticket("prj_named", 1)
    await only_the_good_one_is_taken(ends)
    assert not sentinel.exists()
    assert push.counts()[1] == 0


async def test_jobs_that_look_dead_call_nobody(ends: Ends, push: Push, redis_server: Redis) -> None:
    """RQ calls the failure callback of a job whose worker seems to have died; we do not."""
    with redis_server.client() as client:
        client.hset(
            "rq:job:dead",
            mapping={
                "data": zlib.compress(json.dumps([HANDLER, None, [], {}]).encode()),
                "status": "started",
                "failure_callback_name": "os.abort",
            },
        )
        client.zadd(f"rq:wip:{push.queue_name}", {"dead:beef": 1})
    assert ends.worker is not None
    ends.worker.rename("node_reborn")  # whose first act is its upkeep

    ends.tickets.issue(GOOD)
    await ends.next()
    ends.tickets.issue(GOOD)
    await ends.next()

    with redis_server.client() as client:
        assert client.zscore(f"rq:wip:{push.queue_name}", "dead:beef") is None


@pytest.mark.parametrize(
    "call",
    [
        ["os.system", None, ["prj_bad", 1], {}],
        [f"{HANDLER}s", None, ["prj_bad", 1], {}],
        [HANDLER, None, ["prj_bad", 3], {}],
        [HANDLER, None, ["prj_bad", -1], {}],
        [HANDLER, None, ["prj_bad", True], {}],
        [HANDLER, None, ["prj_bad", "1"], {}],
        [HANDLER, None, ["prj_bad", 1.0], {}],
        [HANDLER, None, ["prj_bad", 1, 1], {}],
        [HANDLER, None, ["prj_bad", 1], {"and": "more"}],
        [HANDLER, "an instance", ["prj_bad", 1], {}],
        [HANDLER, None, ["", 1], {}],
        [HANDLER, None, ["prj'; DROP TABLE run_queue; --", 1], {}],
        [HANDLER, None, ["p" * 65, 1], {}],
        [HANDLER, None, ["prj_é", 1], {}],
        [HANDLER, None, [["prj_bad"], 1], {}],
        [HANDLER],
        "text",
        7,
    ],
)
async def test_what_is_nearly_a_ticket_is_refused(ends: Ends, push: Push, call: Any) -> None:
    """A project's id and a priority, of the right types and within bounds; nothing more."""
    push.data(zlib.compress(json.dumps(call).encode()))

    await only_the_good_one_is_taken(ends)
    assert push.counts()[1] == 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x78\x9c",
        zlib.compress(b"x" * 100_000_000),
        zlib.compress(b"[" * 500),
        zlib.compress(b"\xff\xfe"),
        json.dumps([HANDLER, None, ["prj_bad", 1], {}]).encode(),
    ],
    ids=["empty", "cut", "bomb", "deep", "no text", "not packed"],
)
async def test_what_cannot_be_read_is_refused(ends: Ends, push: Push, data: bytes) -> None:
    """No more of it is unpacked than a ticket has."""
    push.data(data)

    await only_the_good_one_is_taken(ends)
    assert push.counts()[1] == 1


async def test_entries_without_a_job_are_passed_over(
    ends: Ends, push: Push, redis_server: Redis
) -> None:
    """Neither a strange id nor a strange type ends the worker."""
    with redis_server.client() as client:
        for entry in (b"\xff\xfe", b"no such job", b"../../etc/passwd", b"", b"x" * 100_000):
            client.rpush(f"rq:queue:{push.queue_name}", entry)
        client.set("rq:job:not-a-hash", "x")
        client.hset("rq:job:no-data", "status", "queued")
        client.rpush(f"rq:queue:{push.queue_name}", "not-a-hash", "no-data")

    await only_the_good_one_is_taken(ends)


async def test_commands_through_redis_are_not_obeyed(ends: Ends, redis_server: Redis) -> None:
    """RQ's worker would end its process when it is told so in its channel."""
    with redis_server.client() as client:
        listeners = client.publish(f"rq:pubsub:{NODE}", json.dumps({"command": "shutdown"}))

    await only_the_good_one_is_taken(ends)
    assert listeners == 0


async def test_refused_jobs_do_not_pile_up(
    ends: Ends, push: Push, redis_server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of what failed has an end, and what is in it expires."""
    monkeypatch.setattr("jobs.rq_node.FAILED_MAX", 5)

    for _ in range(20):
        push.call("os.system", None, ["true"], {})
    await only_the_good_one_is_taken(ends)

    assert push.counts()[1] == 5
    with redis_server.client() as client:
        failed = client.zrange(f"rq:failed:{push.queue_name}", 0, -1)
        assert all(client.ttl(b"rq:job:" + job_id) > 0 for job_id in failed)
