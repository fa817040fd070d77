"""What stands in for a provider that tests cannot reach: it keeps the provider's published rules.

A stand-in says what it took (`accepted`), which requests broke a rule (`refused`), and can be told
to misbehave as providers do. The pages of the connectors name these behaviours, and a test plays
every row of their tables.
"""

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Self

BODY_BYTES_MAX = 40 * 1024 * 1024
HANG_S = 60.0


@dataclass(kw_only=True)
class Case:
    """One message on its way, before it is checked: a behaviour may spoil any of it."""

    action: str
    message: dict[str, Any]
    credentials: dict[str, Any]
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One HTTP request as it came in."""

    method: str
    path: str  # with its query
    headers: Mapping[str, str]  # names in lower case
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What goes back. `fault`: drop | cut | hang | trickle, instead of a whole answer."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    fault: str | None = None
    taken: bool = False  # also with a fault: the message was taken before things went wrong


class Provider(ABC):
    """A stand-in: `with TwilioStandIn() as twilio: ...`."""

    kind: ClassVar[str]
    message: ClassVar[dict[str, Any]]  # one that is taken, for the action `send`

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.accepted: list[dict[str, Any]] = []
        self.refused: list[str] = []
        self.stopping = threading.Event()

    @abstractmethod
    def connection(self) -> dict[str, Any]:
        """Return the body of the `PUT /v1/connections/...` that leads here."""

    @abstractmethod
    def behaviours(self) -> Mapping[str, Callable[[Case], None]]:
        """Return what it can do to a message, by the name in the connector's page.

        Each function prepares the stand-in for the next message, spoils the message, or both.
        """

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(self, *_: object) -> None: ...

    def case(self) -> Case:
        connection = self.connection()
        return Case(
            action="send",
            message=dict(self.message),
            credentials=dict(connection["credentials"]),
            settings=dict(connection["settings"]),
        )


class HttpProvider(Provider):
    """A stand-in for an HTTP API, in a thread."""

    def __init__(self, port: int = 0) -> None:
        super().__init__()
        self.asked: list[Asked] = []  # every request, also those that got no answer
        self._replies: deque[Reply] = deque()
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.provider = self
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @abstractmethod
    def judge(self, asked: Asked) -> Reply:
        """Answer by the provider's rules; append to `accepted` or `refused` (under `lock`)."""

    def own_behaviours(self) -> Mapping[str, Callable[[Case], None]]:
        """Return what this provider can do besides what any HTTP server can."""
        return {}

    def then(self, *replies: Reply) -> None:
        """Answer the next requests with these, one each; `taken` ones are judged before."""
        with self.lock:
            self._replies.extend(replies)

    def behaviours(self) -> Mapping[str, Callable[[Case], None]]:
        return {
            "takes it": lambda _case: None,
            **{name: self._reply_with(reply) for name, reply in HTTP_FAULTS.items()},
            **self.own_behaviours(),
        }

    def answer(self, asked: Asked) -> Reply:
        with self.lock:
            planned = self._replies.popleft() if self._replies else None
        if planned is None:
            return self.judge(asked)
        if planned.taken:
            self.judge(asked)
        return planned

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _reply_with(self, reply: Reply) -> Callable[[Case], None]:
        return lambda _case: self.then(reply)


HTTP_FAULTS: Mapping[str, Reply] = {
    "answers 500": Reply(status=500, body=b"Internal Server Error"),
    "answers 502": Reply(status=502, body=b"<html>Bad Gateway</html>"),
    "answers 503 with `Retry-After: 30`": Reply(status=503, headers={"Retry-After": "30"}),
    "answers 429 with `Retry-After: 7`": Reply(status=429, headers={"Retry-After": "7"}),
    "answers 408": Reply(status=408),
    "answers 302 to another place": Reply(
        status=302, headers={"Location": "http://127.0.0.1:1/elsewhere"}
    ),
    "closes the connection without an answer": Reply(fault="drop"),
    "closes it in the middle of the answer": Reply(fault="cut", body=b'{"ok": tr'),
    "never answers": Reply(fault="hang"),
    "answers one byte a second": Reply(fault="trickle", body=b"x" * 50),
}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # the standard library's 5 drops connections of a burst
    provider: HttpProvider

    def handle_error(self, *_: object) -> None:
        """Say nothing: clients that go away are part of the play."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes: else 40 ms between them
    server: _Server

    def _any(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        assert size <= BODY_BYTES_MAX
        body = self.rfile.read(size)
        if len(body) < size:
            self.close_connection = True  # who asked is gone in the middle of it
            return
        asked = Asked(
            method=self.command,
            path=self.path,
            headers={name.lower(): value for name, value in self.headers.items()},
            body=body,
        )
        provider = self.server.provider
        provider.asked.append(asked)
        reply = provider.answer(asked)
        if reply.fault is None:
            self._whole(reply)
            return
        self.close_connection = True
        if reply.fault == "hang":
            provider.stopping.wait(HANG_S)
        elif reply.fault == "cut":
            self._head(reply, len(reply.body) + 100)
            self.wfile.write(reply.body)
        elif reply.fault == "trickle":
            self._head(reply, len(reply.body))
            for at in range(len(reply.body)):
                self.wfile.write(reply.body[at : at + 1])
                self.wfile.flush()
                if provider.stopping.wait(1.0):
                    break

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _any  # noqa: N815 - its names

    def _whole(self, reply: Reply) -> None:
        self._head(reply, len(reply.body))
        self.wfile.write(reply.body)

    def _head(self, reply: Reply, size: int) -> None:
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(size))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Keep the output of the tests clean."""
