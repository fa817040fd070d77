"""The HTTP server's connections: uvicorn's, with a short way for the two busiest requests.

Path:   uvicorn parses -> `Quick.take` (a sync invoke, a device write) -> one write of the answer
        anything else, anything unusual -> ASGI as ever

uvicorn makes a task for each request and sends the head and the body of an answer one by one: with
Python's share, half of what such a request costs. The short way has neither. It takes a request
only when its body is complete, and never answers an error: it leaves those to the ASGI routes.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

BODY_WAIT_S = 10  # then the ASGI way waits, which gives up by itself
BODY_BYTES_MAX = 32 * 1024  # larger ones are read in pieces, by the ASGI way

Reply = Callable[[bytes], None]
"""Takes everything after the status line and the Date header; the line itself says the status."""


class Quick(Protocol):
    """Port: the short way. Adapter: `hot.Hot`."""

    def is_quick(self, method: str, path: str) -> bool:
        """Say whether `take` may want this request, by its first line alone."""
        ...

    def take(self, scope: Any, body: bytes, reply: Reply) -> bool:
        r"""Begin to serve the request and return True, or False: nothing was done.

        `reply(rest)` is called once, now or later, with status, headers and body as bytes:
        `200 OK\r\ncontent-length: 2\r\n\r\n{}`.
        """
        ...


def protocol_for(quick: Quick) -> type[HttpToolsProtocol]:
    """Return the class of the connections of a server whose short way is `quick`."""

    class Connection(_Connection):
        way = quick

    return Connection


class _Connection(HttpToolsProtocol):
    way: Quick
    _waiting: tuple[RequestResponseCycle, Any] | None = None  # its body is on its way
    _too_slow: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn narrows it so
        super().connection_made(cast("asyncio.Transport", _Corked(transport)))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting is not None:
            self._waiting = None
            self._too_slow.cancel()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        scope = cycle.scope
        plain = cycle.more_body and cycle.keep_alive and not self.expect_100_continue
        if plain and self.way.is_quick(scope["method"], scope["path"]):
            self._too_slow = self.loop.call_later(BODY_WAIT_S, self._leave_to_asgi)
            self._waiting = (cycle, app)
        else:
            super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if self._waiting is not None and len(self.cycle.body) > BODY_BYTES_MAX:
            self._leave_to_asgi()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self._waiting is None:
            return
        cycle = self._waiting[0]

        def reply(rest: bytes) -> None:
            if cycle.disconnected:
                return
            cycle.response_started = cycle.response_complete = True
            date = self.server_state.default_headers[0][1]
            head, _, tail = rest.partition(b"\r\n")
            self.transport.write(b"HTTP/1.1 %b\r\ndate: %b\r\n%b" % (head, date, tail))
            if not cycle.keep_alive:  # the server is stopping
                self.transport.close()
            cycle.on_response()

        if self.way.take(cycle.scope, bytes(cycle.body), reply):
            self._waiting = None
            self._too_slow.cancel()
        else:
            self._leave_to_asgi()

    def _leave_to_asgi(self) -> None:
        assert self._waiting is not None
        waiting, self._waiting = self._waiting, None
        self._too_slow.cancel()
        super()._start_asgi_task(*waiting)


class _Corked:
    """A transport that holds the first write back until the next one, or the end of this turn."""

    __slots__ = ("_held", "_loop", "_transport", "is_closing")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._held = b""
        self._loop = asyncio.get_running_loop()
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        if self._held:
            data, self._held = self._held + data, b""
            self._transport.write(data)
        elif data.endswith(b"\r\n\r\n"):  # a head: its body follows
            self._held = data
            self._loop.call_soon(self._flush)
        elif data:
            self._transport.write(data)

    def _flush(self) -> None:
        if self._held:
            data, self._held = self._held, b""
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
