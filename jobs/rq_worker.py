"""Takes tickets from RQ's queues in a thread, whatever becomes of Redis meanwhile.

Path:   jobs.rq_tickets -> Redis -> here -> jobs.rq_node -> `take`, which claims rows
Never:  forks, installs a signal handler, or ends before it is stopped.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from random import Random
from typing import Any, Final

import structlog
from redis import RedisError

from jobs.backoff import backoff_ms
from jobs.redis_link import Outage, connect
from jobs.rq_node import ANSWER_S, RqNode
from jobs.rq_tickets import RETRY_BASE_MS, RETRY_MAX_MS, TAKE_S_MAX
from jobs.tickets import Ticket

Take = Callable[[Ticket], Future[Any] | None]

STOP_S: Final = 20.0  # for the ticket in hand
NUDGE_S: Final = 0.1  # how often a thread that blocks is asked to look up, while it is stopped
IDLE_STOP_S: Final = 2.0  # for a thread without a ticket: it may wait for a Redis that is silent
NUDGE_ANSWER_S: Final = 0.5

_log = structlog.get_logger()


def drain(project_id: str, priority: int) -> None:
    """Stand in Redis as the function of every ticket; only a TicketWorker can do what it means.

    Raises:
        RuntimeError: always: whoever calls it is `rq worker`, which has no engine to run anything.
    """
    raise RuntimeError(
        f"a ticket of {project_id}, priority {priority}, is for `cloudcode worker`, not `rq worker`"
    )


class TicketWorkerStopped(Exception):
    """Redis gave a ticket after the worker had been stopped; its rows are found by others."""


class TicketWorker:
    """The other end of `RqTickets`: an RQ worker without a process for each job."""

    def __init__(
        self,
        redis_url: str,
        node_id: str,
        take: Take,
        *,
        prefix: str = "cloudcode",
        clock: Callable[[], float] = time.monotonic,
        rng: Random | None = None,
    ) -> None:
        """Connect to nothing yet.

        Args:
            redis_url: see `redis_link.connect`.
            node_id: the worker's name in `rq info`.
            take: called in the worker's thread, with one ticket at a time; returns when the rows
                are claimed, or a future that is done then. It has `TAKE_S_MAX`.
            prefix: as that of `RqTickets`.
            clock: seconds, monotonic; for heartbeats and what `trouble` says.
            rng: spreads attempts to connect.

        Raises:
            BadRedisUrl: the URL cannot be read.
        """
        self._redis = connect(redis_url, answer_s=ANSWER_S)
        self._nudger = connect(redis_url, answer_s=NUDGE_ANSWER_S)
        self._node_id = node_id
        self._take = take
        self._prefix = prefix
        self._clock = clock
        self._rng = rng or Random()  # noqa: S311 - spreads retries, guards nothing
        self._outage = Outage("ticket worker", clock)
        self._node: RqNode | None = None
        self._taking = threading.Lock()  # held while a ticket is taken
        self._left = False  # nobody waits for the thread any more
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ticket-worker", daemon=True)

    async def start(self) -> None:
        """Take tickets from now on, or as soon as Redis is there."""
        self._thread.start()

    async def stop(self) -> None:
        """Return when the ticket in hand is done, or after STOP_S; no other is taken afterwards."""
        self._stopping.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._join)

    def rename(self, node_id: str) -> None:
        """Go on as another node, within seconds."""
        self._node_id = node_id

    def trouble(self) -> str | None:
        """Return what is wrong with the transport, for an operator, or None."""
        return self._outage.text()

    def _join(self) -> None:
        deadline_s = time.monotonic() + IDLE_STOP_S
        while self._thread.is_alive() and time.monotonic() < deadline_s:
            self._nudge()
            self._thread.join(NUDGE_S)
        self._nudger.close()
        if self._taking.acquire(timeout=STOP_S):
            self._left = True
            self._taking.release()
            self._thread.join(NUDGE_S)
        if self._thread.is_alive():  # a daemon: it holds up nobody's end
            _log.warning("ticket_worker_left", taking=self._taking.locked())

    def _nudge(self) -> None:
        """End the wait of the thread's connection, if it waits; else it looks up by itself."""
        if (node := self._node) is not None:
            with suppress(RedisError, OSError):
                self._nudger.client_unblock(node.client_id)

    # Everything below runs in the thread.

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._live()
            except Exception as error:  # noqa: BLE001 - whatever Redis does, this thread goes on
                if not isinstance(error, RedisError | OSError):
                    _log.exception("ticket_worker_failed")
                failures_count = self._outage.failed(error)
                wait_ms = backoff_ms(
                    failures_count, rng=self._rng, base_ms=RETRY_BASE_MS, cap_ms=RETRY_MAX_MS
                )
                self._stopping.wait(wait_ms / 1_000)
        self._redis.close()

    def _live(self) -> None:
        """Be one node until it is stopped, renamed or cut off; whoever is cut off fades away."""
        node_id = self._node_id
        node = RqNode(self._redis, node_id, self._hand_over, prefix=self._prefix, clock=self._clock)
        node.register_birth()
        self._node = node
        while node_id == self._node_id and not self._stopping.is_set():
            self._outage.answered()
            node.turn()
        self._node = None
        node.register_death()  # type: ignore[no-untyped-call]  # RQ gives it no types

    def _hand_over(self, ticket: Ticket) -> None:
        with self._taking:
            if self._left:
                raise TicketWorkerStopped
            taking = self._take(ticket)
            if taking is not None:
                taking.result(TAKE_S_MAX)
