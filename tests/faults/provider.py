"""A provider of webhooks that notes every message it gets, in a thread of its own.

Path:   engine.outbox -> HTTP -> here; the audit asks what came, by `webhook-id`
"""

import asyncio
import json
import threading
from collections import Counter, defaultdict
from types import TracebackType
from typing import Final, Self

from tests.standins.http_server import Received, answer, http_server

START_S_MAX: Final = 10
ANSWER_S: Final = 0.01  # so long a message has arrived, and its sender does not know it
FAILS_EVERY: Final = 97  # of this many messages one is refused at its first attempt


class Provider:
    """Answers every message with 200, but some of them only when they come again."""

    def __init__(self) -> None:
        self.ids: defaultdict[str, set[str]] = defaultdict(set)  # by item: whose messages came
        self.arrivals: Counter[str] = Counter()  # by webhook-id, those that were taken
        self.refused_count = 0
        self.url = ""
        self._seen: set[str] = set()
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._up.wait(START_S_MAX)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    @property
    def again_count(self) -> int:
        """Return how many messages came again that had been taken already."""
        return self.arrivals.total() - len(self.arrivals)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        async with http_server(self._respond) as server:
            self.url = f"{server.url}/hook"
            self._up.set()
            await self._stopping.wait()

    async def _respond(self, received: Received) -> bytes:
        webhook_id = received.headers["webhook-id"]
        is_new = webhook_id not in self._seen
        self._seen.add(webhook_id)
        if is_new and len(self._seen) % FAILS_EVERY == 0:
            self.refused_count += 1
            return answer(503)
        self.ids[json.loads(received.body)["item"]].add(webhook_id)
        self.arrivals[webhook_id] += 1
        await asyncio.sleep(ANSWER_S)
        return answer()
