"""Tells the other nodes something at once, if they hear it: that there are changes, what to stop.

Path:   engine.wiring, engine.tails -> `publish` -> Redis -> here, in other processes -> a callback
Never:  is relied on: what nobody heard is gone. What must be known stands in the database.
"""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable
from random import Random
from typing import Final, Protocol

from redis import ConnectionError as RedisConnectionError
from redis import RedisError
from redis.asyncio.client import PubSub

from jobs.backoff import backoff_ms
from jobs.redis_link import Outage, connect_async

Callback = Callable[[bytes], None]

WAITING_MAX: Final = 10_000  # messages on their way out; the oldest go
WAITING_BYTES_MAX: Final = 8 * 1024 * 1024
BATCH_MAX: Final = 200
SENDER_BYTES: Final = 8
PING_S: Final = 5.0
SILENCE_S: Final = 15.0  # without an answer to a ping, the connection is a dead one
ANSWER_S: Final = 5.0
RETRY_BASE_MS, RETRY_MAX_MS = 100, 2_000
assert PING_S < SILENCE_S


class Bus(Protocol):
    """Port: what one node publishes, callbacks in all others are called with, in its order.

    At most once as a rule, and not at all while the connection is away; a publisher does not hear
    itself. Everything is called on the loop.
    """

    def publish(self, topic: str, data: bytes) -> None:
        """Tell the others soon. Costs microseconds, raises nothing."""
        ...

    def subscribe(self, topic: str, callback: Callback) -> Callable[[], None]:
        """Call `callback` with what others publish from soon on; return what ends that."""
        ...

    async def start(self) -> None: ...

    async def close(self) -> None: ...


class NullBus:
    """Of a node that is alone: there is nobody to tell."""

    def publish(self, topic: str, data: bytes) -> None:
        pass

    def subscribe(self, topic: str, callback: Callback) -> Callable[[], None]:
        return lambda: None

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass


class RedisBus:
    """Keeps the promises of `Bus` by PUBLISH and SUBSCRIBE, one channel a topic."""

    def __init__(
        self,
        redis_url: str,
        *,
        prefix: str = "cloudcode",
        clock: Callable[[], float] = time.monotonic,
        rng: Random | None = None,
        new_sender: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """Connect to nothing yet.

        Args:
            redis_url: see `redis_link.connect`.
            prefix: of every channel; installations that share a Redis differ in it.
            clock: seconds, monotonic; only for what is logged.
            rng: spreads attempts to connect.
            new_sender: makes what tells this publisher from others.

        Raises:
            BadRedisUrl: the URL cannot be read.
        """
        self._redis = connect_async(redis_url, answer_s=ANSWER_S)
        self._prefix = prefix
        self._rng = rng or Random()  # noqa: S311 - spreads retries, guards nothing
        self._sender = new_sender(SENDER_BYTES)
        self._outages = {who: Outage(who, clock) for who in ("bus out", "bus in")}
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._waiting_bytes = 0
        self._has_waiting = asyncio.Event()
        self._callbacks: dict[str, list[Callback]] = {}
        self._topics_changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.dropped_count = 0  # messages that never went out, for want of room

    def publish(self, topic: str, data: bytes) -> None:
        self._waiting.append((topic, data))
        self._waiting_bytes += len(data)
        self._keep_bounds()
        self._has_waiting.set()

    def subscribe(self, topic: str, callback: Callback) -> Callable[[], None]:
        self._callbacks.setdefault(topic, []).append(callback)
        self._topics_changed.set()

        def end() -> None:
            callbacks = self._callbacks.get(topic, [])
            if callback in callbacks:
                callbacks.remove(callback)
            if not callbacks:
                self._callbacks.pop(topic, None)
            self._topics_changed.set()

        return end

    async def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._again_and_again(self._send, "bus out"), name="bus out"),
            asyncio.create_task(self._again_and_again(self._listen, "bus in"), name="bus in"),
        ]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._redis.aclose()

    async def _again_and_again(self, work: Callable[[Outage], Awaitable[None]], who: str) -> None:
        outage = self._outages[who]
        while True:
            try:
                await work(outage)
            except Exception as error:  # noqa: BLE001 - whatever Redis does, this task goes on
                first = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
                wait_ms = backoff_ms(
                    outage.failed(first),
                    rng=self._rng,
                    base_ms=RETRY_BASE_MS,
                    cap_ms=RETRY_MAX_MS,
                )
                await asyncio.sleep(wait_ms / 1_000)

    # Out.

    async def _send(self, outage: Outage) -> None:
        while True:
            await self._has_waiting.wait()
            batch = [self._waiting.popleft() for _ in range(min(BATCH_MAX, len(self._waiting)))]
            self._waiting_bytes -= sum(len(data) for _, data in batch)
            try:
                async with self._redis.pipeline(transaction=False) as pipeline:
                    for topic, data in batch:
                        pipeline.publish(self._channel(topic), self._sender + data)
                    await pipeline.execute()
            except (RedisError, OSError):
                self._waiting.extendleft(reversed(batch))
                self._waiting_bytes += sum(len(data) for _, data in batch)
                self._keep_bounds()
                raise
            outage.answered()
            if not self._waiting:
                self._has_waiting.clear()

    def _keep_bounds(self) -> None:
        while len(self._waiting) > WAITING_MAX or self._waiting_bytes > WAITING_BYTES_MAX:
            _, data = self._waiting.popleft()
            self._waiting_bytes -= len(data)
            self.dropped_count += 1

    # In.

    async def _listen(self, outage: Outage) -> None:
        async with self._redis.pubsub() as pubsub:
            await pubsub.subscribe(self._channel(""))  # a connection cannot listen to nothing
            outage.answered()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._hear(pubsub))
                group.create_task(self._follow_topics(pubsub))

    async def _hear(self, pubsub: PubSub) -> None:
        loop = asyncio.get_running_loop()
        topics_start = len(self._channel(""))
        while True:
            message = await pubsub.get_message(timeout=SILENCE_S)
            if message is None:
                raise RedisConnectionError("no answer to a ping")
            if message["type"] != "message" or message["data"].startswith(self._sender):
                continue
            topic = message["channel"].decode()[topics_start:]
            for callback in self._callbacks.get(topic, ()):
                loop.call_soon(callback, message["data"][SENDER_BYTES:])
            await asyncio.sleep(0)  # what has come at once does not hold up the loop

    async def _follow_topics(self, pubsub: PubSub) -> None:
        """Subscribe to what callbacks want, and see to it that something is heard."""
        subscribed: set[str] = set()
        while True:
            self._topics_changed.clear()
            wanted = set(self._callbacks)
            if new := wanted - subscribed:
                await pubsub.subscribe(*map(self._channel, new))
            if old := subscribed - wanted:
                await pubsub.unsubscribe(*map(self._channel, old))
            subscribed = wanted
            try:
                async with asyncio.timeout(PING_S):
                    await self._topics_changed.wait()
            except TimeoutError:
                await pubsub.ping()

    def _channel(self, topic: str) -> str:
        return f"{self._prefix}:bus:{topic}"
