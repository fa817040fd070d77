"""Follows the feed of changes: what another node has changed, this one's catalogue reads anew.

Path:   store.changes (committed by another node) -> poked by the bus, or by the clock -> catalogue
Never:  skips a change: the feed is read in order, from where it was left.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import structlog

from engine.control import Catalogue
from engine.store import changes as store
from engine.store.breakers import CHANGE as BREAKERS
from engine.store.database import Database
from engine.store.journal import Journal

POLL_S: Final = 1.0
GAP_S: Final = 1_800.0  # a node that was away for longer reads everything again
FRESH_S: Final = 0.02
READ_ROWS: Final = 500
_log = structlog.get_logger()


def now_s() -> float:
    """Return seconds by a clock that no one sets, and that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Changes:
    """This node's place in the feed."""

    def __init__(self, database: Database, journal: Journal, catalogue: Catalogue) -> None:
        self._database = database
        self._journal = journal
        self._catalogue = catalogue
        self._seq = 0
        self._asked_s = 0.0
        self._read_s = now_s()  # when the feed was last read
        self._reading = asyncio.Lock()
        self._poked = asyncio.Event()
        self.on_breakers: Callable[[str], Awaitable[None]] = _nothing  # of a project; empty: of all
        self._task: asyncio.Task[None] | None = None

    @property
    def seq(self) -> int:
        """Return the last change that the catalogue knows of."""
        return self._seq

    async def begin(self) -> None:
        """Take the feed's end as the beginning: call it before the catalogue is loaded."""
        self._seq = await self._database.read(store.newest)

    def start(self) -> None:
        self._task = asyncio.create_task(self._follow(), name="changes")

    def poke(self) -> None:
        """Read now: something has changed."""
        self._poked.set()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def fresh(self) -> bool:
        """Catch up, at most every FRESH_S; return whether anything had changed.

        For whoever did not find what was asked for: another node may have made it just now.
        """
        now_s = time.monotonic()
        if now_s - self._asked_s < FRESH_S:
            return False
        self._asked_s = now_s
        before = self._seq
        await self.catch_up()
        return self._seq != before

    async def catch_up(self, seq: int | None = None) -> None:
        """Return when the catalogue knows all changes up to `seq`, or up to now."""
        if seq is not None and seq <= self._seq:
            return
        async with self._reading:
            if now_s() - self._read_s > GAP_S:
                # What is older than an hour is gone from the feed.
                await self.begin()
                await self._catalogue.reload()
                await self.on_breakers("")
            self._read_s = now_s()
            while True:
                rows = await self._database.read(store.noted_after, self._seq, READ_ROWS)
                # What changed twice is read once.
                for kind, of in dict.fromkeys(
                    (row.kind, row.of) for row in rows if row.node_id != self._journal.node_id
                ):
                    await self._read(kind, of)
                if rows:
                    self._seq = rows[-1].seq
                if len(rows) < READ_ROWS:
                    return

    async def _read(self, kind: str, of: str) -> None:
        catalogue = self._catalogue
        if kind == "function":
            await catalogue.function_changed(of)
        elif kind == "triggers":
            await catalogue.triggers_changed(of)
        elif kind == "device":
            await catalogue.device_changed(of)
        elif kind == "keys":
            await catalogue.keys_changed()
        elif kind == "projects":
            await catalogue.projects_changed()
        elif kind == "connections":
            await catalogue.connections_changed(of)
        elif kind == BREAKERS:
            await self.on_breakers(of)
        else:
            _log.warning("unknown_change", kind=kind)  # of a newer release

    async def _follow(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._poked.wait()
            self._poked.clear()
            try:
                await self.catch_up()
            except Exception as error:  # noqa: BLE001 - the database may be away; the feed waits
                _log.warning("changes_not_read", error=str(error))
                await asyncio.sleep(POLL_S)


async def _nothing(_project_id: str) -> None:
    """Stand for whoever keeps the breakers: nobody does yet."""
