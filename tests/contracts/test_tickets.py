"""The port of tickets, on both its adapters: in one process, and through RQ."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from random import Random

import pytest

from jobs.rq_worker import TicketWorker
from jobs.tickets import Ticket
from tests.standins.servers import Redis
from tests.standins.ticket_ends import ARRIVES_S, Ends, local_ends, rq_ends

ONE = Ticket("prj_one", 1)
LAST = Ticket("prj_last", 1)


@pytest.fixture(params=["local", "rq"])
async def ends(request: pytest.FixtureRequest) -> AsyncIterator[Ends]:
    if request.param == "local":
        async with local_ends() as opened:
            yield opened
    else:
        server: Redis = request.getfixturevalue("redis_server")
        async with rq_ends(server.url) as opened:
            yield opened


async def test_a_ticket_is_taken_as_it_was_issued(ends: Ends) -> None:
    """Project and priority arrive; nothing else does."""
    issued = {Ticket("prj_a", 0), Ticket("prj_a", 2), Ticket("prj_b-c_9", 1)}

    for ticket in issued:
        ends.tickets.issue(ticket)

    assert {await ends.next() for _ in issued} == issued
    assert ends.tickets.trouble() is None


async def test_a_burst_is_taken_as_one(ends: Ends) -> None:
    """A thousand events of one project need not wake a worker a thousand times."""
    for _ in range(1_000):
        ends.tickets.issue(ONE)
    ends.tickets.issue(LAST)

    assert len(await ends.until(LAST)) <= 2


async def test_what_is_issued_while_one_is_taken_comes_again(ends: Ends) -> None:
    """Whoever takes may have looked into the table just before the row was there."""
    rest = [ONE]
    ends.on_take = lambda _: rest and ends.loop.call_soon_threadsafe(ends.tickets.issue, rest.pop())

    ends.tickets.issue(ONE)

    assert [await ends.next(), await ends.next()] == [ONE, ONE]


@pytest.mark.slow
async def test_no_wake_up_is_lost(ends: Ends) -> None:
    """The last take begins after the last issue, whatever the order of things in between."""
    committed_count = 0
    seen_count = 0

    def look(_: Ticket) -> None:
        nonlocal seen_count
        seen_count = committed_count

    ends.on_take = look
    rng = Random(4)

    for _ in range(500):
        committed_count += 1
        ends.tickets.issue(ONE)
        await asyncio.sleep(rng.choice((0, 0, 0.000_1, 0.001, 0.003)))  # so that they interleave

    async with asyncio.timeout(ARRIVES_S):
        while seen_count != committed_count:
            await asyncio.sleep(0.005)  # it is seen in another thread


async def test_who_fails_to_take_one_takes_the_next(ends: Ends) -> None:
    """A bug or a lost database costs one ticket, not the transport."""
    ends.loop.set_exception_handler(lambda _loop, _context: None)  # who hears of the local one

    def fail(ticket: Ticket) -> None:
        if ticket == ONE:
            raise ZeroDivisionError

    ends.on_take = fail

    ends.tickets.issue(ONE)
    ends.tickets.issue(LAST)

    assert await ends.until(LAST) == [ONE]


async def test_nothing_is_raised_after_the_end(ends: Ends) -> None:
    """Whoever commits a run while the process stops need not know."""
    await ends.tickets.close()

    ends.tickets.issue(ONE)

    assert ends.tickets.trouble() is None


@pytest.mark.slow
async def test_a_future_is_waited_for(redis_server: Redis) -> None:
    """A worker has one ticket in hand: the next comes when the first one's rows are claimed."""
    loop = asyncio.get_running_loop()
    claimed: Future[None] = Future()
    order: list[str] = []

    async with rq_ends(redis_server.url) as ends:

        def take(ticket: Ticket) -> Future[None] | None:
            order.append(f"begins {ticket.project_id}")
            return claimed if ticket == ONE else loop.call_soon_threadsafe(done.set) and None

        done = asyncio.Event()
        worker = TicketWorker(redis_server.url, "node_2", take, prefix=ends.prefix)
        assert ends.worker is not None
        await ends.worker.stop()
        await worker.start()

        ends.tickets.issue(ONE)
        ends.tickets.issue(LAST)
        loop.call_later(0.3, lambda: (order.append("claimed"), claimed.set_result(None)))
        await done.wait()
        await worker.stop()

    assert order == ["begins prj_one", "claimed", "begins prj_last"]


@pytest.mark.slow
async def test_a_stop_waits_for_the_ticket_in_hand(redis_server: Redis) -> None:
    """What has begun to be claimed is claimed; what comes later is for others."""
    async with rq_ends(redis_server.url) as ends:
        begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

        def slowly(_: Ticket) -> None:
            begun.set()
            go_on.wait(10)
            ended.set()

        ends.on_take = slowly
        ends.tickets.issue(ONE)
        await ends.next()
        assert ends.worker is not None

        ends.loop.call_later(0.3, go_on.set)
        await ends.worker.stop()

        assert begun.is_set()
        assert ended.is_set()


async def test_an_idle_worker_stops_at_once(redis_server: Redis) -> None:
    """It waits in Redis, and is woken there."""
    async with rq_ends(redis_server.url) as ends:
        ends.tickets.issue(ONE)
        await ends.next()
        assert ends.worker is not None
        with redis_server.client() as client:
            while client.info("clients")["blocked_clients"] == 0:
                await asyncio.sleep(0.01)  # it is another process that knows
        began_s = ends.loop.time()

        await ends.worker.stop()

        assert ends.loop.time() - began_s < 1
