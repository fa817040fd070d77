"""How much a project may have in the queue: asked before anything is stored that would wait there.

Path:   api.writes, api.submissions, api.invocations, replays, dead_letters, scheduler -> here
Never:  refuses what a run that has begun leaves behind: its effects are bounded by its causes.

The numbers are the table's of a second ago, with what this node has added and ended since. So the
limit can be overshot by what other nodes take in a second; before a refusal they are read anew, and
before more than a few rows are taken of a project of which nothing is known.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

import structlog

from engine.allowances import Effective
from engine.errors import QuotaExceeded
from engine.store.database import Database
from engine.store.queue_view import queued_counts

EVERY_S: Final = 1.0
SHARE: Final = 20  # of the time that counting took, nothing is counted
FRESH_S: Final = 0.1  # numbers so young are believed when they refuse
KNOWN_S: Final = 60.0  # numbers that nobody has asked for since are forgotten
FEW: Final = 100  # rows that a project may add before its rows have been counted
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
        self._known: dict[str, int] = {}  # rows, when they were last counted
        self._counted_s: dict[str, float] = {}  # ... which was then
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
        """Say whether so many rows more fit for sure: of what is not known, only a few do."""
        has_room = self.seems_to_fit(project_id, count)
        is_known = project_id in self._known or not self._allowances(project_id).queued
        return has_room and (is_known or self._used(project_id) + count <= FEW)

    def seems_to_fit(self, project_id: str, count: int) -> bool:
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
        for _ in range(2):  # a count that is under way may have begun without this project
            if project_id not in self._known or time.monotonic() - self._looked_s > FRESH_S:
                await self._look()
        if not self.seems_to_fit(project_id, count):
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
            found = await self._database.read(queued_counts, asked)
        except Exception as error:  # noqa: BLE001 - the numbers of before have to do; the loop goes on
            _log.warning("queue_not_counted", error=str(error))
            self._asked.update(asked)
        else:
            now_s = time.monotonic()
            for project_id, most in asked.items():
                self._known[project_id] = found[project_id]
                self._counted_s[project_id] = now_s
                self._since[project_id] -= before[project_id]
                # Who has room for as much again is counted when somebody asks again.
                if 2 * found[project_id] >= most:
                    self._asked.add(project_id)
            self._forget(now_s)
        finally:
            self._looked_s = time.monotonic()
            self._looking = None

    def _forget(self, now_s: float) -> None:
        """Forget what is old, or nothing: for what nobody asks, nothing is added up either."""
        for project_id, counted_s in tuple(self._counted_s.items()):
            if now_s - counted_s > KNOWN_S:
                del self._known[project_id], self._counted_s[project_id]
        for project_id, count in tuple(self._since.items()):
            is_wanted = project_id in self._known or project_id in self._asked
            if not count or not is_wanted:
                del self._since[project_id]

    async def _look_forever(self) -> None:
        while True:
            began_s = time.monotonic()
            if self._asked:
                await self._look()
            await asyncio.sleep(max(EVERY_S, SHARE * (time.monotonic() - began_s)))
