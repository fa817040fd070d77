"""How much a project may have in the queue: asked before anything is stored that would wait there.

Path:   api.writes, api.submissions, api.invocations, replays, dead_letters, scheduler -> here
Never:  refuses what a run that has begun leaves behind: its effects are bounded by its causes.

The numbers are the table's of a second ago, with what this node has added and ended since. So the
limit can be overshot by what other nodes take in a second; before a refusal they are read anew.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

import structlog

from engine.allowances import Effective
from engine.errors import EngineError, QuotaExceeded
from engine.store.database import Database
from engine.store.queue_view import queued_counts

EVERY_S: Final = 1.0
SHARE: Final = 20  # of the time that counting took, nothing is counted
FRESH_S: Final = 0.1  # numbers so young are believed when they refuse
RETRY_AFTER_S: Final = 5
QUEUED: Final = "queued"
_log = structlog.get_logger()


class QueueRoom:
    """What waits, by project. `start`, then `close`."""

    def __init__(
        self, database: Database, allowances: Callable[[str], Effective], *, refused: Counter[str]
    ) -> None:
        """`refused` counts requests by limit."""
        self._database = database
        self._allowances = allowances
        self._refused = refused
        self._known: dict[str, int] = {}  # rows, at the last look
        self._since: Counter[str] = Counter()  # what this node has added and ended since
        self._asked: set[str] = set()  # projects whose rows are to be counted
        self._looked_s = 0.0
        self._looking: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._look_forever(), name="queue-room")

    async def close(self) -> None:
        tasks = [task for task in (self._task, self._looking) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def changed(self, project_id: str, count: int) -> None:
        """Count rows that this node has added to the queue, or ended."""
        self._since[project_id] += count

    def fits(self, project_id: str, count: int) -> bool:
        """Say whether so many rows more fit, as far as is known. May be called in any thread."""
        most = self._allowances(project_id).queued
        if not most:
            return True
        self._asked.add(project_id)
        return self._used(project_id) + count <= most

    async def need(self, project_id: str, count: int) -> None:
        """Refuse a request that would add so many rows to a queue without room for them.

        Raises:
            QuotaExceeded: names the allowance, and how much waits.
        """
        if self.fits(project_id, count):
            return
        if time.monotonic() - self._looked_s > FRESH_S:
            await self._look()
        if not self.fits(project_id, count):
            self._refused[QUEUED] += 1
            raise QuotaExceeded(
                QUEUED,
                self._allowances(project_id).queued,
                self._used(project_id),
                retry_after_s=RETRY_AFTER_S,
                why="the project has too much in the queue",
            )

    def _used(self, project_id: str) -> int:
        return max(0, self._known.get(project_id, 0) + self._since[project_id])

    async def _look(self) -> None:
        """Count, or wait for the count that is under way; never raises for the database."""
        if self._looking is None:
            self._looking = asyncio.create_task(self._count(), name="queue-count")
        await asyncio.shield(self._looking)

    async def _count(self) -> None:
        # A copy in one step: the journal's thread may ask meanwhile.
        asked = {of: self._allowances(of).queued for of in tuple(self._asked)}
        self._asked.difference_update(asked)
        before = Counter(self._since)
        try:
            self._known = await self._database.read(queued_counts, asked)
        except EngineError as error:  # the numbers of before have to do
            _log.warning("queue_not_counted", error=str(error))
            self._asked.update(asked)
        else:
            # Who has room for as much again as waits is counted when somebody asks again.
            self._asked.update(of for of, most in asked.items() if 2 * self._known[of] >= most)
            for project_id, count in before.items():
                self._since[project_id] -= count
                if not self._since[project_id]:
                    del self._since[project_id]
        finally:
            self._looked_s = time.monotonic()
            self._looking = None

    async def _look_forever(self) -> None:
        while True:
            began_s = time.monotonic()
            if self._asked:
                await self._look()
            await asyncio.sleep(max(EVERY_S, SHARE * (time.monotonic() - began_s)))
