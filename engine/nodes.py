"""This process among the others on its database: it shows that it lives, and sees who does not.

Path:   wiring -> here -> store.nodes; what a dead node had becomes free, and this one is told
Never:  trusts a wall clock: a node is dead when its beat has stood still for the whole lease, by
        this process's own monotonic clock, while this process itself could read the database.

A node that was taken over (it hung, was paused, had no network) finds its row gone. Nothing that
it did since can be committed; it drops what it held, takes a new id and goes on.
"""

import asyncio
import os
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

import msgspec
import structlog

from engine.clock import Clock
from engine.errors import EngineError
from engine.ids import new_id
from engine.store import nodes as store
from engine.store.journal import Journal

BEATS_PER_LEASE: Final = 6
ORPHANS_EVERY: Final = 6  # beats
ADOPTED_MAX: Final = 500  # deliveries of one transaction
_log = structlog.get_logger()


class Nodes:
    """The life of this process as a node."""

    def __init__(
        self,
        journal: Journal,
        clock: Clock,
        *,
        kind: str,
        release: str,
        lease_s: float,
        alone: bool,
        counts: Counter[str],
        on_lost: Callable[[], None],
        on_freed: Callable[[], None],
        on_adopted: Callable[[list[str], bool], None],
        on_checked: Callable[[], None],
        state: Callable[[], dict[str, object]],
    ) -> None:
        """Hand over what it tells.

        Args:
            journal: gets this node's id, in whose name runs end.
            clock: for people; see above.
            kind: `serve` or `worker`.
            release: of this program.
            lease_s: how long a node may be silent.
            alone: nobody else can be on this database (SQLite).
            counts: `lease_takeovers`, `lease_lost` are added to.
            on_lost: this node was taken over: everything it holds is somebody else's.
            on_freed: there is work again that no node has.
            on_adopted: (deliveries that wait, whether others were on their way): they are ours now.
            on_checked: now and then: time to look for what an outage may have left.
            state: what people are shown of this node.
        """
        self.on_born: Callable[[str], None] = lambda _node_id: None
        self._journal = journal
        self._clock = clock
        self._kind = kind
        self._release = release
        self._lease_s = lease_s
        self._alone = alone
        self._counts = counts
        self._on_lost = on_lost
        self._on_freed = on_freed
        self._on_adopted = on_adopted
        self._on_checked = on_checked
        self._state = state
        self._seen: dict[str, tuple[int, float]] = {}  # others: beat, since when (monotonic)
        self._looked_s = 0.0
        self._beats_count = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        assert self._journal.node_id is not None, "start it first"
        return self._journal.node_id

    async def start(self) -> None:
        if self._alone:
            await self._journal.run(store.leave_alone)
        await self._be_born()

    def watch(self) -> None:
        """Begin to beat: call it when everything that hears of it is there."""
        if not self._alone:
            self._task = asyncio.create_task(self._beat_forever(), name="nodes")

    async def close(self) -> None:
        """Stop: what is still this node's becomes free for others."""
        if self._task is not None:
            self._task.cancel()
        try:
            await self._journal.run(store.leave, self.id)
        except EngineError as error:  # they will find out by the lease
            _log.warning("node_could_not_leave", error=str(error))

    async def _be_born(self) -> None:
        node = store.NewNode(
            id=new_id("node"),
            kind=self._kind,
            host=socket.gethostname(),
            pid=os.getpid(),
            release=self._release,
            now_ms=self._clock(),
        )
        await self._journal.run(store.register, node)
        self._journal.node_id = node.id
        self.on_born(node.id)
        _log.info("node_started", node_id=node.id, kind=self._kind)

    async def _beat_forever(self) -> None:
        pause_s = self._lease_s / BEATS_PER_LEASE
        while True:
            try:
                await self._beat()
            except Exception as error:  # noqa: BLE001 - a node that beats no more claims on as a ghost
                _log.warning("node_could_not_beat", error=str(error))
            await asyncio.sleep(pause_s)

    async def _beat(self) -> None:
        state = msgspec.json.encode(self._state()).decode()
        alive, others = await self._journal.run(store.beat, self.id, state, self._clock())
        if not alive:
            _log.error("node_was_taken_over", node_id=self.id)
            self._counts["lease_lost"] += 1
            self._on_lost()
            await self._be_born()
            self._on_freed()
            return
        for dead_id, last_beat in self._silent(others, time.monotonic()):
            await self._take_over(dead_id, last_beat)
        if self._beats_count % ORPHANS_EVERY == 0:
            freed_count = await self._journal.run(store.free_orphans)
            if freed_count:
                self._on_freed()
            self._on_checked()
        self._beats_count += 1
        waiting, interrupted = await self._journal.run(store.adopt_deliveries, self.id, ADOPTED_MAX)
        if waiting or interrupted:
            self._on_adopted(waiting, interrupted)

    def _silent(self, others: list[tuple[str, int]], now_s: float) -> list[tuple[str, int]]:
        """Return the nodes whose beat has stood still for a lease, as far as we were there."""
        if now_s - self._looked_s > 2.5 * self._lease_s / BEATS_PER_LEASE:
            self._seen.clear()  # it was us who were away, or the database was
        self._looked_s = now_s
        known, self._seen = self._seen, {}
        silent = []
        for node_id, beat in others:
            before, since_s = known.get(node_id, (-1, now_s))
            self._seen[node_id] = (beat, since_s if before == beat else now_s)
            if before == beat and now_s - since_s > self._lease_s:
                silent.append((node_id, beat))
        return silent

    async def _take_over(self, dead_id: str, last_beat: int) -> None:
        freed = await self._journal.run(store.take_over, dead_id, last_beat)
        if freed is None:
            return
        self._counts["lease_takeovers"] += 1
        _log.warning(
            "node_taken_over", node_id=dead_id, runs=freed.runs, deliveries=freed.deliveries
        )
        if freed.runs:
            self._on_freed()
