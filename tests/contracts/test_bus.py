"""The bus between nodes: what one publishes, the others hear; and a node that is alone."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from uuid import uuid4

import pytest

from jobs.bus import NullBus
from jobs.redis_bus import BATCH_MAX, RedisBus
from tests.standins.servers import Redis

HEARD_S = 20.0


@dataclass(slots=True)
class Listener:
    """A node's bus, and what it hears of some topics."""

    bus: RedisBus
    heard: "asyncio.Queue[bytes]" = field(default_factory=asyncio.Queue)

    async def next(self) -> bytes:
        async with asyncio.timeout(HEARD_S):
            return await self.heard.get()

    async def hears(self, publisher: RedisBus, topic: str) -> None:
        """Return when it hears this topic; then forget how often."""
        while self.heard.empty():
            publisher.publish(topic, b"are you there?")
            await asyncio.sleep(0.01)
        publisher.publish(topic, b"begin")
        while await self.next() != b"begin":
            pass


@pytest.fixture
async def nodes(redis_server: Redis) -> AsyncIterator[tuple[Listener, Listener]]:
    prefix = f"tests{uuid4().hex[:8]}"
    both = (
        Listener(RedisBus(redis_server.url, prefix=prefix)),
        Listener(RedisBus(redis_server.url, prefix=prefix)),
    )
    for node in both:
        await node.bus.start()
    yield both
    for node in both:
        await node.bus.close()


async def test_others_hear_what_is_published_in_its_order(
    nodes: tuple[Listener, Listener],
) -> None:
    """Bytes arrive as they were, also more than fit into one batch."""
    here, there = nodes
    there.bus.subscribe("changes", there.heard.put_nowait)
    await there.hears(here.bus, "changes")
    messages = [b"\x00\xff\r\n", b"", *(b"%d" % number for number in range(3 * BATCH_MAX))]

    for message in messages:
        here.bus.publish("changes", message)

    assert [await there.next() for _ in messages] == messages


async def test_a_publisher_does_not_hear_itself(nodes: tuple[Listener, Listener]) -> None:
    """It knows already; and is not told twice what only others must do."""
    here, there = nodes
    here.bus.subscribe("changes", here.heard.put_nowait)
    there.bus.subscribe("changes", there.heard.put_nowait)
    await there.hears(here.bus, "changes")
    await here.hears(there.bus, "changes")

    here.bus.publish("changes", b"mine")
    there.bus.publish("changes", b"yours")

    assert await there.next() == b"mine"
    assert await here.next() == b"yours"


async def test_a_topic_is_heard_from_its_subscription_to_its_end(
    nodes: tuple[Listener, Listener],
) -> None:
    """Topics come and go while the bus runs; other topics are not heard."""
    here, there = nodes
    there.bus.subscribe("stays", there.heard.put_nowait)
    end = there.bus.subscribe("goes", there.heard.put_nowait)
    await there.hears(here.bus, "goes")
    await there.hears(here.bus, "stays")

    end()
    here.bus.publish("goes", b"nobody hears this")
    here.bus.publish("never", b"nor this")
    here.bus.publish("stays", b"this")

    assert await there.next() == b"this"


async def test_a_callback_that_fails_stops_no_other(nodes: tuple[Listener, Listener]) -> None:
    """A bug in one listener is logged by the loop; the next one is called."""
    here, there = nodes
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _loop, context: failures.append(context["exception"])
    )
    there.bus.subscribe("changes", lambda _data: 1 // 0)
    there.bus.subscribe("changes", there.heard.put_nowait)
    await there.hears(here.bus, "changes")

    here.bus.publish("changes", b"after it")

    assert await there.next() == b"after it"
    assert {type(failure) for failure in failures} == {ZeroDivisionError}


async def test_what_waits_is_sent_before_the_end(nodes: tuple[Listener, Listener]) -> None:
    """The last words of a node that stops are heard."""
    here, there = nodes
    there.bus.subscribe("changes", there.heard.put_nowait)
    await there.hears(here.bus, "changes")
    began_s = asyncio.get_running_loop().time()

    here.bus.publish("changes", b"farewell")
    await here.bus.close()

    assert await there.next() == b"farewell"
    assert asyncio.get_running_loop().time() - began_s < 2


async def test_a_node_that_is_alone_tells_nobody() -> None:
    """Without Redis the same calls do nothing."""
    bus = NullBus()
    heard: list[bytes] = []
    await bus.start()
    end = bus.subscribe("changes", heard.append)

    bus.publish("changes", b"x")
    end()
    await bus.close()

    assert heard == []
