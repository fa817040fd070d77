"""Tickets inside one process: taken on the same loop, one turn later.

Path:   engine.backlog -> here -> engine.backlog
Never:  runs what takes a ticket inside the call that issued it.
"""

import asyncio
from collections.abc import Callable

from jobs.tickets import Ticket


class LocalTickets:
    """Keeps the promises of `Tickets` without Redis."""

    def __init__(self, take: Callable[[Ticket], None]) -> None:
        self._take = take
        self._waiting: set[Ticket] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def issue(self, ticket: Ticket) -> None:
        if self._closed or ticket in self._waiting:
            return
        self._waiting.add(ticket)
        if self._loop is not None:
            self._loop.call_soon(self._hand_over, ticket)

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        for ticket in self._waiting:
            self._loop.call_soon(self._hand_over, ticket)

    async def close(self) -> None:
        self._closed = True
        self._waiting.clear()

    def trouble(self) -> str | None:
        return None

    def _hand_over(self, ticket: Ticket) -> None:
        if ticket in self._waiting:
            self._waiting.remove(ticket)  # first: what is issued from now on comes again
            self._take(ticket)
