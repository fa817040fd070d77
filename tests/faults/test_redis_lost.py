"""Redis is flushed, killed, hangs or refuses while tickets and messages are on their way."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from typing import Any

import pytest
from structlog.testing import capture_logs

from jobs import redis_bus as bus
from jobs import redis_link, rq_node, rq_tickets
from jobs.redis_bus import RedisBus
from jobs.redis_link import BadRedisUrl
from jobs.rq_tickets import RqTickets
from jobs.tickets import Ticket
from tests.standins.servers import Redis
from tests.standins.ticket_ends import Ends, rq_ends

pytestmark = pytest.mark.slow

PASSWORD = "in-no-log"
HANDED_OVER_S = 0.05  # how often who polls the table of runs issues its ticket again; here: often
COMES_BACK_S = 25.0


@pytest.fixture
def server() -> Iterator[Redis]:
    """One that a test has for itself."""
    with Redis() as running:
        yield running


@pytest.fixture
async def ends(server: Redis) -> AsyncIterator[Ends]:
    async with rq_ends(server.url) as opened:
        opened.tickets.issue(Ticket("prj_first", 1))
        await opened.next()
        yield opened


async def until(question: Callable[[], Any]) -> Any:
    """Return the first true answer; what is asked changes in other threads and processes."""
    async with asyncio.timeout(COMES_BACK_S):
        while not (answer := question()):
            await asyncio.sleep(0.02)
    return answer


async def flows(ends: Ends) -> None:
    """Return when tickets of a new and of an old project are taken, issued as a poller does."""
    wanted = {Ticket("prj_new", 0), Ticket("prj_first", 1)}
    taken: set[Ticket] = set()

    async def poll() -> None:
        while True:
            for ticket in wanted:
                ends.tickets.issue(ticket)
            await asyncio.sleep(HANDED_OVER_S)

    polling = asyncio.create_task(poll())
    async with asyncio.timeout(COMES_BACK_S):
        while not wanted <= taken:
            taken.add(await ends.next())
    polling.cancel()


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


async def test_tickets_flow_again_after_a_flush(server: Redis, ends: Ends) -> None:
    """Everything in Redis is gone, marks and queues and workers; nobody has to do anything."""
    for number in range(200):
        ends.tickets.issue(Ticket(f"prj_{number}", 1))
        if number % 20 == 0:
            server.flush()
            await asyncio.sleep(0.005)

    await flows(ends)

    assert ends.tickets.trouble() is None


async def test_a_worker_appears_again_after_a_flush(server: Redis) -> None:
    """With its next heartbeat RQ knows it again, its queues too."""
    hours = count(0, 3_600)
    async with rq_ends(server.url, "node_back", clock=lambda: float(next(hours))) as ends:
        ends.tickets.issue(Ticket("prj_first", 1))
        await ends.next()

        server.flush()
        ends.tickets.issue(Ticket("prj_second", 1))
        await ends.next()

        with server.client() as client:
            ends.tickets.issue(Ticket("prj_third", 1))
            await ends.next()
            assert client.smembers("rq:workers") == {b"rq:worker:node_back"}
            assert len(client.smembers("rq:queues")) == 3
            assert client.hget("rq:worker:node_back", "queues").count(b",") == 2


async def test_tickets_flow_again_after_a_crash(server: Redis, ends: Ends) -> None:
    """Redis is killed with tickets in it, is away for a while, and comes back empty."""
    for number in range(50):
        ends.tickets.issue(Ticket(f"prj_{number}", 1))
    server.stop()
    ends.tickets.issue(Ticket("prj_while_away", 1))

    trouble = await until(ends.tickets.trouble)
    assert ends.worker is not None
    await until(ends.worker.trouble)
    server.start()
    await flows(ends)

    assert trouble.startswith("Redis does not answer: ConnectionError (since ")
    assert trouble.endswith("; runs still happen, found by polling")
    await until(lambda: ends.tickets.trouble() is None)
    await until(lambda: ends.worker and ends.worker.trouble() is None)
    assert {"tickets", "ticket-worker"} <= threads()


async def test_what_was_issued_while_redis_was_away_arrives(server: Redis, ends: Ends) -> None:
    """A short absence costs no poll."""
    server.stop()
    for _ in range(3):
        ends.tickets.issue(Ticket("prj_while_away", 2))
    await until(ends.tickets.trouble)

    server.start()

    assert await ends.until(Ticket("prj_while_away", 2)) == []


async def test_tickets_flow_again_after_a_pause(server: Redis, ends: Ends) -> None:
    """Redis hangs with connections open, longer than an answer may take, and goes on."""
    server.pause()
    for number in range(50):
        ends.tickets.issue(Ticket(f"prj_{number}", 1))

    trouble = await until(ends.tickets.trouble)
    server.resume()
    await flows(ends)

    assert trouble.startswith("Redis does not answer: TimeoutError")
    await until(lambda: ends.tickets.trouble() is None)
    assert {"tickets", "ticket-worker"} <= threads()


async def test_tickets_flow_again_when_connections_are_cut(server: Redis, ends: Ends) -> None:
    """As a network or an operator may do at any time."""
    for number in range(100):
        ends.tickets.issue(Ticket(f"prj_{number}", 1))
        if number % 10 == 0:
            with server.client() as client:
                client.execute_command("CLIENT", "KILL", "TYPE", "NORMAL", "SKIPME", "YES")
            await asyncio.sleep(0.01)

    await flows(ends)


async def test_a_worker_may_be_there_before_redis(server: Redis) -> None:
    """Machines start in any order; what was issued meanwhile is taken."""
    server.stop()

    async with rq_ends(server.url) as ends:
        ends.tickets.issue(Ticket("prj_early", 1))
        await until(ends.tickets.trouble)
        server.start()

        assert await ends.next() == Ticket("prj_early", 1)


async def test_a_hanging_redis_holds_up_no_end(server: Redis) -> None:
    """The process can be stopped while Redis is silent."""
    async with rq_ends(server.url) as ends:
        ends.tickets.issue(Ticket("prj_first", 1))
        await ends.next()
        server.pause()
        began_s = ends.loop.time()
        assert ends.worker is not None

        await ends.worker.stop()
        await ends.tickets.close()

        assert ends.loop.time() - began_s < 8
        server.resume()


async def test_nothing_of_the_url_is_logged(server: Redis) -> None:
    """Neither a wrong password nor a right one, whatever fails."""
    with server.client() as client:
        client.config_set("requirepass", "another")
    url = f"redis://:{PASSWORD}@127.0.0.1:{server.port}/0"

    with capture_logs() as logs:
        async with rq_ends(url) as ends:
            ends.tickets.issue(Ticket("prj_first", 1))
            trouble = await until(ends.tickets.trouble)
            await until(lambda: len(logs) >= 2)

    assert trouble.startswith("Redis refuses: AuthenticationError")
    assert PASSWORD not in str(logs)
    assert {entry["event"] for entry in logs} >= {"redis_lost"}


@pytest.mark.parametrize("adapter", [RqTickets, RedisBus])
def test_a_url_that_cannot_be_read_is_not_repeated(adapter: type) -> None:
    """A password with a slash in it is read as a port, and Python's error would say it."""
    with pytest.raises(BadRedisUrl) as refused:
        adapter(f"redis://:{PASSWORD}/x@127.0.0.1:6379/0")

    assert PASSWORD not in repr(refused.getrepr(chain=True))


async def test_no_more_than_so_many_wait_for_redis(
    server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is more is found by polling; the process does not grow."""
    monkeypatch.setattr(rq_tickets, "WAITING_MAX", 10)
    server.stop()
    tickets = RqTickets(server.url)
    await tickets.start()

    for number in range(1_000):
        tickets.issue(Ticket(f"prj_{number}", 1))

    assert len(tickets._waiting) <= 10
    await tickets.close()


async def test_what_was_taken_leaves_nothing(
    server: Redis, ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After 2,000 tickets Redis has as many keys as before, once results have expired."""
    monkeypatch.setattr(rq_node, "RESULT_S", 1)
    last = Ticket("prj_last", 2)

    for number in range(2_000):
        ends.tickets.issue(Ticket(f"prj_{number % 700}", number % 3))
        if number % 100 == 0:
            await asyncio.sleep(0.01)
    ends.tickets.issue(last)
    await ends.until(last)

    with server.client() as client:
        # Lists of workers and queues, the worker, three lists of what has finished.
        await until(lambda: client.dbsize() <= 10)


async def test_tickets_that_nobody_takes_do_not_pile_up(
    server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a worker a queue has an end, and every other key expires."""
    monkeypatch.setattr(rq_tickets, "QUEUED_MAX", 100)
    monkeypatch.setattr(rq_tickets, "MARK_MS", 1)
    tickets = RqTickets(server.url)
    await tickets.start()

    with server.client() as client:
        for number in range(2_000):
            tickets.issue(Ticket(f"prj_{number % 200}", 1))
            if number % 200 == 0:
                await asyncio.sleep(0.02)
        await until(lambda: not tickets._waiting)
        await tickets.close()
        endless = {key for key in client.scan_iter() if client.ttl(key) == -1}

        assert endless == {b"rq:queues", b"rq:queue:cloudcode-default"}
        assert client.llen("rq:queue:cloudcode-default") <= 100


async def test_the_bus_is_heard_again_after_a_crash(server: Redis) -> None:
    """Both sides connect again by themselves, and what is subscribed to meanwhile is heard."""
    here, there = RedisBus(server.url), RedisBus(server.url)
    heard: list[bytes] = []
    there.subscribe("early", heard.append)
    await here.start()
    await there.start()

    async def tell(topic: str) -> None:
        heard.clear()
        async with asyncio.timeout(COMES_BACK_S):
            while not heard:
                here.publish(topic, b"x")
                await asyncio.sleep(0.05)

    await tell("early")
    server.stop()
    there.subscribe("late", heard.append)
    await asyncio.sleep(0.5)  # lets both sides meet the silence
    server.start()

    await tell("early")
    await tell("late")
    await here.close()
    await there.close()


async def test_the_bus_notices_silence(server: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that hangs is given up for a new one, on both sides."""
    monkeypatch.setattr(bus, "PING_S", 0.1)
    monkeypatch.setattr(bus, "SILENCE_S", 0.5)
    monkeypatch.setattr(bus, "ANSWER_S", 0.5)
    monkeypatch.setattr(redis_link, "CONNECT_S", 0.5)
    with capture_logs() as logs:
        here = RedisBus(server.url)
        await here.start()
        await asyncio.sleep(0.3)

        server.pause()
        here.publish("any", b"x")
        await until(lambda: {entry["who"] for entry in logs} == {"bus out", "bus in"})
        server.resume()

        await until(lambda: sum(entry["event"] == "redis_back" for entry in logs) == 2)
        await here.close()


async def test_the_bus_keeps_what_is_newest(server: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """While Redis is away the oldest messages go, by number and by size, and are counted."""
    monkeypatch.setattr(bus, "WAITING_MAX", 5)
    monkeypatch.setattr(bus, "WAITING_BYTES_MAX", 100)
    here = RedisBus(server.url)
    here.publish("any", b"old" * 30)
    for number in range(10):
        here.publish("any", b"%d" % number)

    with server.client() as client, client.pubsub() as listener:
        listener.subscribe("cloudcode:bus:any")
        assert listener.get_message(timeout=5)["type"] == "subscribe"
        await here.start()
        heard = [await until(lambda: listener.get_message(timeout=0)) for _ in range(5)]
        await here.close()

    assert here.dropped_count == 6
    assert [message["data"][bus.SENDER_BYTES :] for message in heard] == [
        b"5",
        b"6",
        b"7",
        b"8",
        b"9",
    ]
