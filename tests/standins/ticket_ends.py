"""Both ends of a transport of tickets, and what came out of it, for tests."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from uuid import uuid4

from jobs.local_tickets import LocalTickets
from jobs.rq_tickets import RqTickets
from jobs.rq_worker import TicketWorker
from jobs.tickets import Ticket, Tickets

ARRIVES_S = 20.0


@dataclass(slots=True)
class Ends:
    """`tickets` is where they go in; `next` is where they come out."""

    loop: asyncio.AbstractEventLoop
    tickets: Tickets = field(init=False)
    worker: TicketWorker | None = None
    prefix: str = ""
    on_take: Callable[[Ticket], None] = lambda ticket: None  # may run in the worker's thread
    _taken: "asyncio.Queue[Ticket]" = field(default_factory=asyncio.Queue)

    def take(self, ticket: Ticket) -> None:
        self.loop.call_soon_threadsafe(self._taken.put_nowait, ticket)
        self.on_take(ticket)

    async def next(self) -> Ticket:
        async with asyncio.timeout(ARRIVES_S):
            return await self._taken.get()

    async def until(self, last: Ticket) -> list[Ticket]:
        """Return what has been taken before `last`."""
        before = []
        while (ticket := await self.next()) != last:
            before.append(ticket)
        return before


@contextlib.asynccontextmanager
async def local_ends() -> AsyncIterator[Ends]:
    ends = Ends(asyncio.get_running_loop())
    ends.tickets = LocalTickets(ends.take)
    await ends.tickets.start()
    yield ends
    await ends.tickets.close()


@contextlib.asynccontextmanager
async def rq_ends(
    redis_url: str, node_id: str = "node_1", clock: Callable[[], float] | None = None
) -> AsyncIterator[Ends]:
    ends = Ends(asyncio.get_running_loop())
    ends.prefix = f"tests{uuid4().hex[:8]}"  # tests share a Redis, but no queue
    options = {} if clock is None else {"clock": clock}
    ends.tickets = RqTickets(redis_url, prefix=ends.prefix)
    ends.worker = TicketWorker(redis_url, node_id, ends.take, prefix=ends.prefix, **options)
    await ends.tickets.start()
    await ends.worker.start()
    try:
        yield ends
    finally:
        await ends.worker.stop()
        await ends.tickets.close()
