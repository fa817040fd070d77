"""Looks at what this node needs, says what is wrong with it, and logs when that changes.

Path:   wiring -> `Readiness.checks` -> /readyz; and every few seconds -> the log
Never:  takes a node out of service for what other nodes, or time, will mend: that is a note.

What is wrong is a text that says what to do. Of two kinds: a node that cannot do its work is not
ready; one that can, though something is not as it should be, is degraded (`Degraded`).
"""

import asyncio
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from engine.api.platform import Check, Degraded
from engine.clock import Clock
from engine.errors import EngineError
from engine.store.database import Database
from engine.store.journal import Journal
from engine.store.nodes import beat
from engine.store.nodes_view import Look, look
from engine.store.schema import known_revisions

WATCH_S: Final = 10.0  # between two looks of its own, for the log
FRESH_S: Final = 1.0  # checks that come together share one look at the database
ANSWER_S: Final = 1.5  # less than `/readyz` gives a check
JUMP_S: Final = 5.0  # a clock that is off by more has jumped: NTP slews by milliseconds
JUMP_SHOWN_S: Final = 600.0
FREE_BYTES_MIN: Final = 512 * 1024 * 1024
FREE_SHARE_MIN: Final = 0.02
FREE_BYTES_PLENTY: Final = 10 * 1024**3  # 2 % of a large disk may be a lot
NODES_NAMED: Final = 5
Finding = str | Degraded | None
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What a node knows of itself."""

    kind: str  # serve | worker
    release: str
    has_redis: bool
    data_dir: Path


class Readiness:
    """The checks of one node."""

    def __init__(
        self,
        node: Node,
        database: Database,
        journal: Journal,
        clock: Clock,
        *,
        redis_trouble: Callable[[], str | None],
        sandbox_alive: Callable[[], bool],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take what is looked at.

        Args:
            node: this one.
            database: must answer.
            journal: its last commit must have been taken.
            clock: must not jump.
            redis_trouble: what is wrong with Redis; None: nothing, or there is none.
            sandbox_alive: whether cells can be had.
            monotonic: seconds by a clock that does not jump.
        """
        self._node = node
        self._database = database
        self._journal = journal
        self._clock = clock
        self._redis_trouble = redis_trouble
        self._sandbox_alive = sandbox_alive
        self._monotonic = monotonic
        self.draining = False  # set when the process has been told to stop
        self._known, self._head = known_revisions()
        self._look: Look | None = None
        self._looked_s = float("-inf")
        self._looking = asyncio.Lock()
        self._offset_s = self._wall_offset_s()
        self._jump: tuple[float, float] | None = None  # by how much, and when
        self._logged: dict[str, Finding] = {}
        self._task: asyncio.Task[None] | None = None

    def checks(self) -> Mapping[str, Check]:
        """Return all checks by name, in the order in which they are shown."""
        found: dict[str, Check] = {
            "database": self.database,
            "commits": self.commits,
            "schema": self.schema,
            "sandbox": _at_once(self.sandbox),
            "disk": _at_once(self.disk),
            "clock": self.clock,
            "release": self.release,
            "draining": _at_once(self.stopping),
        }
        if self._node.has_redis:
            found |= {"redis": _at_once(self.redis), "workers": self.workers}
        return found

    async def start(self) -> None:
        self._task = asyncio.create_task(self._watch(), name="readiness")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    # What makes a node unready.

    async def database(self) -> Finding:
        if await self._seen() is None:
            return (
                "does not answer; what needs it is refused, and nothing that was accepted is lost"
            )
        return None

    async def commits(self) -> Finding:
        """Say whether the database takes what is written: a full disk lets it answer all the same.

        After a failure nobody may come to write: so this check tries.
        """
        if self._journal.trouble is None:
            return None
        node_id = self._journal.node_id or ""
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._journal.run(beat, node_id, "{}", self._clock())
        except (EngineError, TimeoutError):
            return f"the last one failed: {self._journal.trouble}"
        return None

    async def schema(self) -> Finding:
        """Tables of a newer release are a note: it only adds to what this one needs."""
        seen = await self._seen()
        if seen is None or seen.revision == self._head:
            return None
        if seen.revision in self._known:
            return (
                f"the tables are those of revision {seen.revision}, this release needs "
                f"{self._head}: stop this node, or run `cloudcode migrate`"
            )
        return Degraded(
            f"the tables are those of revision {seen.revision}, of a newer release than this one "
            f"({self._node.release}): it carries on; start it again with that release"
        )

    def sandbox(self) -> Finding:
        return (
            None
            if self._sandbox_alive()
            else "the zygote is gone; it is started again with the next cell"
        )

    def stopping(self) -> Finding:
        return "the process is stopping; it takes nothing new" if self.draining else None

    # What is only noted.

    def disk(self) -> Finding:
        try:
            found = shutil.disk_usage(self._node.data_dir)
        except OSError:
            return None  # a node on PostgreSQL need not have one
        low = found.free < FREE_BYTES_MIN or (
            found.free < FREE_SHARE_MIN * found.total and found.free < FREE_BYTES_PLENTY
        )
        if not low:
            return None
        return Degraded(
            f"{_mib(found.free)} MiB of {_mib(found.total)} are free in {self._node.data_dir}: "
            "make room, or keep less (`cloudcode admin retention show`)"
        )

    async def clock(self) -> Finding:
        """Say whether the wall clock has jumped, or differs from the database's."""
        self._sample_clock()
        now_s, notes = self._monotonic(), []
        if self._jump is not None and now_s - self._jump[1] < JUMP_SHOWN_S:
            ago_s = round(now_s - self._jump[1])
            notes.append(f"the wall clock jumped by {self._jump[0]:+.0f} s, {ago_s} s ago")
        seen = await self._seen()
        if seen is not None and seen.database_ms is not None:
            ahead_s = (self._clock() - seen.database_ms) / 1000 - (now_s - self._looked_s)
            if abs(ahead_s) > JUMP_S:
                way = "ahead of" if ahead_s > 0 else "behind"
                notes.append(f"it is {abs(ahead_s):.0f} s {way} the database's")
        if not notes:
            return None
        return Degraded(
            "; ".join(notes) + ". Schedules and ages follow it, leases and runs do not: look at NTP"
        )

    async def release(self) -> Finding:
        seen = await self._seen()
        others = [] if seen is None else [
            f"{one.kind} {one.host} (process {one.pid}): {one.release}"
            for one in seen.nodes
            if one.release != self._node.release
        ]  # fmt: skip
        if not others:
            return None
        more = f", and {len(others) - NODES_NAMED} more" if len(others) > NODES_NAMED else ""
        return Degraded(
            f"this node is of release {self._node.release}, others are not: "
            f"{', '.join(others[:NODES_NAMED])}{more}. Let all be of one soon"
        )

    def redis(self) -> Finding:
        trouble = self._redis_trouble()
        if trouble is None:
            return None
        return Degraded(f"{trouble}. Work is found by looking for it: some seconds later")

    async def workers(self) -> Finding:
        seen = await self._seen()
        if seen is None or any(one.kind == "worker" for one in seen.nodes):
            return None
        return Degraded("no worker is alive: what is queued waits. Start `cloudcode worker`")

    # Looking.

    async def _seen(self) -> Look | None:
        """Return what the database says, at most FRESH_S old; None: it does not answer."""
        async with self._looking:
            if self._monotonic() - self._looked_s > FRESH_S:
                try:
                    async with asyncio.timeout(ANSWER_S):
                        self._look = await self._database.read(look)
                except (EngineError, TimeoutError):
                    self._look = None
                self._looked_s = self._monotonic()
            return self._look

    def _wall_offset_s(self) -> float:
        return self._clock() / 1000 - self._monotonic()

    def _sample_clock(self) -> None:
        offset_s = self._wall_offset_s()
        jump_s, self._offset_s = offset_s - self._offset_s, offset_s
        if abs(jump_s) > JUMP_S:
            self._jump = (jump_s, self._monotonic())

    async def _watch(self) -> None:
        while True:
            await self.log_changes()
            await asyncio.sleep(WATCH_S)

    async def log_changes(self) -> None:
        """Look at everything, and log what is not as it was at the last look."""
        for name, check in self.checks().items():
            found = await check()
            before = self._logged.get(name)
            if _kind(found) == _kind(before):
                continue
            self._logged[name] = found
            if found is None:
                _log.info("well_again", check=name)
            elif isinstance(found, Degraded):
                _log.warning("degraded", check=name, note=found.note)
            else:
                _log.error("not_ready", check=name, problem=found)


def _at_once(check: Callable[[], Finding]) -> Check:
    async def checked() -> Finding:
        return check()

    return checked


def _kind(found: Finding) -> type | None:
    return None if found is None else type(found)


def _mib(size: int) -> int:
    return size // (1024 * 1024)
