"""Hands queued runs to the dispatcher: at once while there is room, from the store otherwise.

Path:   journal (committed) -> here -> dispatch;   start -> store.backlog -> here -> dispatch
Never:  forgets a row: what memory has no room for stays in the store and is read when there is.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import structlog

from engine.catalogue import Catalogue
from engine.errors import NotFound
from engine.events import joined_values, write_input
from engine.run import Run
from engine.store import backlog as store
from engine.store.database import Database

IN_MEMORY_MAX: Final = 20_000  # queued runs of one project that the dispatcher may hold
READ_ROWS: Final = 2_000
_log = structlog.get_logger()


class Backlog:
    """The queued runs of this node."""

    def __init__(
        self,
        database: Database,
        barrier: Callable[[], Awaitable[None]],
        catalogue: Catalogue,
        submit: Callable[[Run], None],
    ) -> None:
        self._database = database
        self._barrier = barrier
        self._catalogue = catalogue
        self._dispatch = submit
        self._held: dict[str, Run] = {}
        self._shares: Counter[str] = Counter()  # of `_held`, by project
        self._left_out: set[str] = set()  # projects with rows that memory had no room for
        self._reading: dict[str, asyncio.Task[None]] = {}  # by project
        self._ended: set[str] = set()  # runs that ended while a read was under way

    @property
    def count(self) -> int:
        return len(self._held)

    def running(self) -> list[str]:
        """Return the ids of queued runs that are in a cell now."""
        return [run.execution_id for run in self._held.values() if run.started_ns]

    async def start(self) -> None:
        """Take up everything that an earlier process accepted and did not finish."""
        for project_id in await self._database.read(store.projects_waiting):
            await self._read(project_id)

    def submit(self, runs: Iterable[Run]) -> None:
        """Take runs whose rows were just committed."""
        for run in runs:
            if self._shares[run.project_id] >= IN_MEMORY_MAX:
                self._left_out.add(run.project_id)
            else:
                self._take(run)

    def ended(self, run: Run) -> None:
        """The run has its record, or will have it within milliseconds."""
        project_id = run.project_id
        if self._held.pop(run.execution_id, None) is not None:
            self._shares[project_id] -= 1
        if self._reading:
            self._ended.add(run.execution_id)
        if (
            project_id in self._left_out
            and project_id not in self._reading
            and self._shares[project_id] < IN_MEMORY_MAX // 2
        ):
            task = asyncio.get_running_loop().create_task(self._read(project_id))
            self._reading[project_id] = task

    async def close(self) -> None:
        for task in self._reading.values():
            task.cancel()

    def _take(self, run: Run) -> None:
        run.on_end = self.ended
        self._held[run.execution_id] = run
        self._shares[run.project_id] += 1
        self._dispatch(run)

    async def _read(self, project_id: str) -> None:
        self._left_out.discard(project_id)
        left_out = True  # also when the store cannot be read: the next end of a run tries again
        try:
            left_out = await self._read_rows(project_id)
        finally:
            if left_out:
                self._left_out.add(project_id)
            self._reading.pop(project_id, None)
            if not self._reading:
                self._ended.clear()

    async def _read_rows(self, project_id: str) -> bool:
        """Take up what memory has room for; return whether rows were left in the store."""
        after = ""
        while self._shares[project_id] < IN_MEMORY_MAX:
            await self._barrier()  # what has ended so far has no row any more
            rows = await self._database.read(store.oldest, project_id, after, READ_ROWS)
            for row in rows:
                run = None if self._is_known(row.id) else await self._revive(row)
                if run is not None and not self._is_known(row.id):
                    self._take(run)
            if len(rows) < READ_ROWS:
                return False
            after = rows[-1].id
        return True

    def _is_known(self, run_id: str) -> bool:
        return run_id in self._held or run_id in self._ended

    async def _revive(self, row: store.Queued) -> Run | None:
        function = self._catalogue.function_by_id(row.function_id)
        if function is None:
            return None  # its deletion is on its way to take the row too
        version = function.choose(row.id)
        device = None
        if row.device_id is not None:
            try:
                device = await self._catalogue.device_by_id(row.project_id, row.device_id)
            except NotFound:
                _log.warning("device_gone", execution_id=row.id, device_id=row.device_id)
        if row.input is not None:
            given = row.input.encode()
        elif device is not None and row.event_id is not None and row.payload is not None:
            given = write_input(
                row.handler,
                device,
                row.event_id,
                joined_values(row.payload),
                row.created_ms,
                row.source or "http",
            )
        else:
            given = (row.payload or "null").encode()
        return Run(
            execution_id=row.id,
            version=version,
            handler=row.handler,
            cause=row.cause,
            limits=version.limits(row.handler),
            input=given,
            created_ms=row.created_ms,
            created_ns=time.monotonic_ns(),
            root_id=row.root_id,
            depth=row.depth,
            event_id=row.event_id,
            device=device,
            queued=True,
        )
