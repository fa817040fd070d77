"""The bus between nodes that share a Redis.

Path:   engine.wiring -> `publish` -> Redis -> here, in other processes -> a callback on the loop
Never:  is relied on: see `jobs.bus`, which has the port.
"""

import asyncio
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from random import Random
from typing import Any, Final

import structlog
from redis import ConnectionError as RedisConnectionError
from redis import Redis, RedisError

from jobs.backoff import backoff_ms
from jobs.bus import Callback
from jobs.redis_link import Outage, connect

WAITING_MAX: Final = 10_000  # messages on their way out, or in; the oldest go
WAITING_BYTES_MAX: Final = 8 * 1024 * 1024
BATCH_MAX: Final = 200
SENDER_BYTES: Final = 8
PING_S: Final = 5.0
SILENCE_S: Final = 15.0  # who does not hear his own pings listens to a dead connection
ANSWER_S: Final = 2.0
RETRY_BASE_MS, RETRY_MAX_MS = 100, 2_000
CLOSE_S: Final = 3.0
assert PING_S + ANSWER_S < SILENCE_S
assert ANSWER_S < CLOSE_S

_log = structlog.get_logger()


class RedisBus:
    """Keeps the promises of `Bus` by PUBLISH and SUBSCRIBE, one channel a topic.

    Two threads, each alone on its connection. A channel of its own, on which the one tells the
    other that it lives and that there are new topics, is what keeps them from sharing more.

    Not `redis.asyncio`: while Redis hung, its listener now and then could not be cancelled.
    """

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
            clock: seconds, monotonic; for pings, and what is logged.
            rng: spreads attempts to connect.
            new_sender: makes what tells this publisher from others.

        Raises:
            BadRedisUrl: the URL cannot be read.
        """
        self._redis: Redis = connect(redis_url, answer_s=ANSWER_S)
        self._prefix = prefix
        self._rng = rng or Random()  # noqa: S311 - spreads retries, guards nothing
        self._sender = new_sender(SENDER_BYTES)
        self._clock = clock
        self._ping_due_s = 0.0
        self._own_topic = f"@{self._sender.hex()}"
        self._out_outage = Outage("bus out", clock)
        self._in_outage = Outage("bus in", clock)
        self._room = threading.Lock()  # of what waits
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._waiting_bytes = 0
        self._wakes: SimpleQueue[None] = SimpleQueue()
        self._heard: deque[tuple[str, bytes]] = deque(maxlen=WAITING_MAX)
        self._is_delivery_due = False
        self._callbacks: dict[str, list[Callback]] = {}
        self._topics_changed = threading.Event()
        self._closing = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads = [
            threading.Thread(target=self._run_out, name="bus-out", daemon=True),
            threading.Thread(target=self._run_in, name="bus-in", daemon=True),
        ]
        self.dropped_count = 0  # messages that never went out, or in, for want of room

    def publish(self, topic: str, data: bytes) -> None:
        with self._room:
            self._waiting.append((topic, data))
            self._waiting_bytes += len(data)
            self._keep_bounds()
        self._wake()

    def subscribe(self, topic: str, callback: Callback) -> Callable[[], None]:
        self._callbacks.setdefault(topic, []).append(callback)
        self._follow_topics()

        def end() -> None:
            callbacks = self._callbacks.get(topic, [])
            if callback in callbacks:
                callbacks.remove(callback)
            if not callbacks:
                self._callbacks.pop(topic, None)
            self._follow_topics()

        return end

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        for thread in self._threads:
            thread.start()

    async def close(self) -> None:
        """Send what still waits, if Redis takes it; call nobody any more."""
        self._closing.set()
        self._wake()
        for thread in self._threads:
            if thread.is_alive():
                await asyncio.to_thread(thread.join, CLOSE_S)
        self._callbacks.clear()

    def _wake(self) -> None:
        if self._wakes.empty():
            self._wakes.put(None)

    def _follow_topics(self) -> None:
        self._topics_changed.set()
        self._wake()

    def _deliver(self) -> None:
        """Run on the loop: call whom it concerns, each by itself, a bounded number a turn."""
        assert self._loop is not None
        self._is_delivery_due = False  # first: what is heard from now on is delivered again
        for _ in range(min(BATCH_MAX, len(self._heard))):
            topic, data = self._heard.popleft()
            for callback in self._callbacks.get(topic, ()):
                self._loop.call_soon(callback, data)
        if self._heard and not self._is_delivery_due:
            self._is_delivery_due = True
            self._loop.call_soon(self._deliver)

    def _channel(self, topic: str) -> str:
        return f"{self._prefix}:bus:{topic}"

    # Everything below runs in the threads.

    def _run_out(self) -> None:
        self._run(self._send, self._out_outage)
        with suppress(RedisError, OSError):
            self._send()  # the last words, and that the listener is to look up

    def _run_in(self) -> None:
        self._run(self._listen, self._in_outage)

    def _run(self, turn: Callable[[], None], outage: Outage) -> None:
        while not self._closing.is_set():
            try:
                turn()
            except Exception as error:  # noqa: BLE001 - whatever Redis does, this thread goes on
                if not isinstance(error, RedisError | OSError):
                    _log.exception("bus_failed")
                failures_count = outage.failed(error)
                wait_ms = backoff_ms(
                    failures_count, rng=self._rng, base_ms=RETRY_BASE_MS, cap_ms=RETRY_MAX_MS
                )
                self._closing.wait(wait_ms / 1_000)

    def _send(self) -> None:
        """Send what waits, and say so to our own listener when it should look up."""
        with suppress(Empty):
            self._wakes.get(timeout=0 if self._waiting or self._closing.is_set() else PING_S)
        with self._room:
            batch = [self._waiting.popleft() for _ in range(min(BATCH_MAX, len(self._waiting)))]
            self._waiting_bytes -= sum(len(data) for _, data in batch)
        try:
            with self._redis.pipeline(transaction=False) as pipeline:
                for topic, data in batch:
                    pipeline.publish(self._channel(topic), self._sender + data)
                if not batch or self._is_ping_due():
                    pipeline.publish(self._channel(self._own_topic), self._sender)
                    self._ping_due_s = self._clock() + PING_S
                pipeline.execute()
        except (RedisError, OSError):
            with self._room:
                self._waiting.extendleft(reversed(batch))
                self._waiting_bytes += sum(len(data) for _, data in batch)
                self._keep_bounds()
            raise
        self._out_outage.answered()

    def _is_ping_due(self) -> bool:
        has_news = self._topics_changed.is_set() or self._closing.is_set()
        return has_news or self._clock() >= self._ping_due_s

    def _keep_bounds(self) -> None:
        while len(self._waiting) > WAITING_MAX or self._waiting_bytes > WAITING_BYTES_MAX:
            _, data = self._waiting.popleft()
            self._waiting_bytes -= len(data)
            self.dropped_count += 1

    def _listen(self) -> None:
        """Hear until the end, or until the connection is lost."""
        subscribed = {self._own_topic}
        with self._redis.pubsub() as pubsub:  # type: ignore[no-untyped-call]  # redis-py's lacks types
            pubsub.subscribe(self._channel(self._own_topic))
            while not self._closing.is_set():
                self._topics_changed.clear()
                wanted = {self._own_topic, *tuple(self._callbacks)}
                if new := wanted - subscribed:
                    pubsub.subscribe(*map(self._channel, new))
                if old := subscribed - wanted:
                    pubsub.unsubscribe(*map(self._channel, old))
                subscribed = wanted
                message = pubsub.get_message(timeout=SILENCE_S)
                if message is None:
                    raise RedisConnectionError("our own pings are not heard")
                self._in_outage.answered()
                self._hear(message)

    def _hear(self, message: dict[str, Any]) -> None:
        if message["type"] != "message" or message["data"].startswith(self._sender):
            return
        topic = message["channel"].decode()[len(self._channel("")) :]
        if len(self._heard) == WAITING_MAX:
            self.dropped_count += 1
        self._heard.append((topic, message["data"][SENDER_BYTES:]))
        if not self._is_delivery_due:
            assert self._loop is not None
            self._is_delivery_due = True
            self._loop.call_soon_threadsafe(self._deliver)
