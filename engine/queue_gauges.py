"""What waits, as numbers: read from the database when somebody asks, and not again for a while.

Path:   /metrics -> Metrics.refresh -> here -> store.queue_view
Never:  keeps a scrape waiting for a database that does not answer; shows old numbers as new ones.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from engine.api.platform import Samples
from engine.clock import Clock
from engine.errors import EngineError
from engine.store.database import Database
from engine.store.queue_view import View, view

FRESH_S: Final = 5.0  # so long the numbers are not read again
WAIT_S: Final = 1.0  # a scrape waits at most so long for them
QUEUES_MAX: Final = 50  # label values; queues beyond them go together as `other`
OTHER: Final = "other"
_log = structlog.get_logger()


class QueueGauges:
    """The gauges that are the same on every node: those of the database."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._clock = clock
        self._monotonic = monotonic
        self._view: View | None = None
        self._now_ms = 0  # when it was looked at
        self._asked_s = -FRESH_S
        self._reading: asyncio.Task[None] | None = None

    async def refresh(self) -> None:
        """Bring the numbers up to date unless they are fresh; never raises."""
        now_s = self._monotonic()
        if self._reading is None and now_s - self._asked_s >= FRESH_S:
            self._asked_s = now_s
            self._reading = asyncio.create_task(self._read(), name="queue-gauges")
        if self._reading is not None:
            _, late = await asyncio.wait([self._reading], timeout=WAIT_S)
            if late:
                self._view = None  # it is read on; these numbers are of long ago

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])

    def samples(self) -> Mapping[str, Samples]:
        """Return samples by the name of their metric; without the database just that it is away."""
        found = self._view
        if found is None:
            return {"cloudcode_database_up": {(): 0.0}}
        return {
            "cloudcode_database_up": {(): 1.0},
            **_waiting(found, self._now_ms),
            "cloudcode_nodes": _by_word(found.nodes),
            "cloudcode_jobs": _by_word(found.jobs),
            "cloudcode_deliveries": _by_word(found.deliveries),
            "cloudcode_connection_gates": _by_word(found.gates),
        }

    def schedule_lag_s(self) -> float:
        """Return how long the most overdue schedule has waited; 0: none has."""
        return 0.0 if self._view is None else self._view.lag_ms / 1000

    async def _read(self) -> None:
        try:
            now_ms = self._clock()
            self._view = await self._database.read(view, now_ms)
            self._now_ms = now_ms
        except EngineError as error:
            self._view = None
            _log.warning("queue_not_counted", error=str(error))
        finally:
            self._reading = None


def _by_word(counts: Mapping[str, int]) -> Samples:
    return {(word,): float(count) for word, count in counts.items()}


def _waiting(found: View, now_ms: int) -> Mapping[str, Samples]:
    sizes: Counter[str] = Counter()
    for one in found.waiting:
        sizes[one.queue] += one.rows
    named = {queue for queue, _ in sizes.most_common(QUEUES_MAX)}
    depth: Counter[tuple[str, ...]] = Counter({("default", "default", "queued"): 0})
    ages: dict[tuple[str, ...], float] = {("default", "default", "queued"): 0.0}
    for one in found.waiting:
        key = (one.queue if one.queue in named else OTHER, one.priority, one.state)
        depth[key] += one.rows
        age_s = max(0, now_ms - one.oldest_due_ms) / 1000
        ages[key] = max(ages.get(key, 0.0), age_s)
    return {
        "cloudcode_queue_depth": {key: float(count) for key, count in depth.items()},
        "cloudcode_queue_oldest_age_seconds": ages,
    }
