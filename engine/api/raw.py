"""One raw ASGI request: what a route asks of it, and its one answer.

Path:   hot -> here -> a route of invocations, writes, things -> `answer` or `refuse`
Never:  reads on when a body is larger than its route allows; waits for one without an end.
"""

import asyncio
import base64
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec
from starlette.types import Message, Receive, Scope, Send

from engine.api.access import Access, authenticate
from engine.api.edge import BodyTooSlow
from engine.api.ports import Ports
from engine.api.problems import (
    PROBLEM_JSON,
    headers_of,
    problem_body,
    problem_headers,
    problem_of,
)
from engine.causality import HEADER as VIA_HEADER
from engine.causality import Above, read_via
from engine.errors import EngineError, PayloadTooLarge
from engine.idempotency import Claim
from engine.ids import new_id
from engine.quotas import CALL_DEPTH_MAX
from engine.rate_limits import RateLimited, RateLimits, Standing, headers_of_standings
from engine.rate_limits import Scope as Scoped
from engine.store.journal import Commit

REQUEST_ID_CHARS_MAX: Final = 128
BODY_WAIT_S: Final = 30  # a client that takes longer holds memory for nothing
_JSON: Final = (b"content-type", b"application/json")
_encode: Final = msgspec.json.encode

VIA: Final = VIA_HEADER.lower().encode()
Route = tuple[Callable[..., Awaitable[None]], tuple[str, ...]]
"""What serves a request: called with the ports, the request, and these parts of its path."""


class ClientGone(Exception):
    """The client closed the connection before its request was whole: nobody waits for an answer."""


class Draining(EngineError):
    """The node is stopping: another one, or this one in a moment, will take the request."""

    code = "draining"


class MethodNotAllowed(EngineError):
    """The path takes another method."""

    code = "method_not_allowed"

    def __init__(self, asked: str, allowed: str) -> None:
        self.allowed = allowed
        super().__init__(f"{asked} is not possible here; use {allowed}")


class Request:
    """One request: what a handler asks of it, and its one answer."""

    __slots__ = (
        "_body", "_headers", "_receive", "_request_id", "_send", "_standings", "claim",
        "execution_id", "scope", "started", "work_done",
    )  # fmt: skip

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        self._body: bytes | None = None
        self.execution_id = ""
        self._request_id = ""
        self.started = False
        self.claim: Claim | None = None  # on its Idempotency-Key: see `keyed.claim_key`
        self._standings: list[Standing] = []  # of its key and its device, where they are limited
        self.work_done = False  # an error is how the work ended, and no refusal to begin it

    @property
    def key(self) -> str | None:
        """The header Idempotency-Key, unchecked."""
        found = self._headers.get(b"idempotency-key")
        return None if found is None else found.decode("latin-1")

    @property
    def query(self) -> dict[str, str]:
        text = self.scope["query_string"]
        if not text:
            return {}
        return {name: values[-1] for name, values in parse_qs(text.decode("latin-1")).items()}

    def header(self, name: bytes) -> str:
        return self._headers.get(name, b"").decode("latin-1")

    @property
    def above(self) -> Above | None:
        """What it says of the run that sent it, if a function did; see `engine.causality`."""
        text = self._headers.get(VIA)
        return None if text is None else read_via(text.decode("latin-1"))

    def above_call(self) -> Above | None:
        """Return that for a request that asks for a run.

        Raises:
            LoopDetected: the run may not be.
        """
        if (above := self.above) is not None:
            above.check(CALL_DEPTH_MAX)
        return above

    def access(self, ports: Ports) -> Access:
        """Return what the caller's key may do, and count the request for the key.

        Raises:
            RateLimited: the key has used its minute up.
            EngineError: as `authenticate`.
        """
        found = authenticate(
            ports.catalogue, self.header(b"authorization"), self.header(b"x-project")
        )
        self.count(ports.rate_limits, Scoped.KEY, found.key_id, found.requests_per_minute)
        return found

    def count(self, limits: RateLimits, scope: Scoped, of: str, per_minute: int) -> None:
        """Count this request once for a key or a device; 0: there is no limit.

        Raises:
            RateLimited: there is nothing left of the minute's quota.
        """
        if not per_minute or any(one.scope is scope for one in self._standings):
            return  # or the route begins again: see `Hot`
        try:
            self._standings.append(limits.take(scope, of, per_minute))
        except RateLimited as error:
            self._standings.append(error.standing)
            raise

    async def body(self, bytes_max: int, limit_name: str) -> bytes:
        """Return the body.

        Raises:
            PayloadTooLarge: it is, or says that it is, larger than `bytes_max`.
        """
        if self._body is not None:
            return self._body
        announced = self._headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > bytes_max:
            raise PayloadTooLarge("the body", limit_name, bytes_max, int(announced))
        message: Message = await self._receive()
        body: bytes = message.get("body", b"")
        if message.get("more_body", False):
            try:
                async with asyncio.timeout(BODY_WAIT_S):
                    while message.get("more_body", False) and len(body) <= bytes_max:
                        message = await self._receive()
                        body += message.get("body", b"")
            except TimeoutError:
                raise BodyTooSlow from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        if len(body) > bytes_max:
            raise PayloadTooLarge("the body", limit_name, bytes_max, len(body))
        self._body = body
        return body

    def as_fetch_input(self, body: bytes) -> bytes:
        """Return this request as the `fetch` handler gets it, JSON."""
        scope = self.scope
        host = self.header(b"host") or "localhost"
        path = scope["raw_path"].decode("latin-1")
        query = scope["query_string"].decode("latin-1")
        url = f"{scope['scheme']}://{host}{path}{'?' + query if query else ''}"
        try:
            text: str | None = body.decode() if body else None
            binary = False
        except UnicodeDecodeError:
            text, binary = base64.b64encode(body).decode(), True
        headers = [
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]
        ]
        return _encode(
            {
                "method": scope["method"],
                "url": url,
                "headers": headers,
                "body": text,
                "body_base64": binary,
            }
        )

    async def answer(
        self,
        status: int,
        body: bytes,
        headers: list[tuple[bytes, bytes]] | tuple[()] = (),
        *,
        json: bool = True,
    ) -> None:
        sent = self._told(headers, json=json)
        if self.claim is not None:
            await self.claim.settle(status, sent, body, work_done=self.work_done)
        self.started = True
        if self._standings:
            wait_s = next((int(text) for name, text in headers if name == b"retry-after"), 0)
            sent += headers_of_standings([one.after(wait_s) for one in self._standings])
        sent.append((b"x-request-id", self.request_id.encode()))
        sent.append((b"content-length", b"%d" % len(body)))
        await self._send({"type": "http.response.start", "status": status, "headers": sent})
        if self.scope["method"] == "HEAD":
            body = b""
        await self._send({"type": "http.response.body", "body": body})

    def answer_with(
        self,
        commit: Commit,
        status: int,
        body: bytes,
        headers: list[tuple[bytes, bytes]] | tuple[()] = (),
    ) -> None:
        """Let the answer that `commit` will have be stored with it, if there is a key to it."""
        if self.claim is not None:
            self.claim.answer_with(commit, status, self._told(headers, json=True), body)

    def _told(
        self, headers: list[tuple[bytes, bytes]] | tuple[()], *, json: bool
    ) -> list[tuple[bytes, bytes]]:
        told = [*headers]
        if json:
            told.append(_JSON)
        if self.execution_id:
            told.append((b"execution-id", self.execution_id.encode()))
        return told

    @property
    def request_id(self) -> str:
        """The caller's X-Request-Id if it is a plain one, else one of ours; always the same."""
        if not self._request_id:
            given = self.header(b"x-request-id")
            if (
                given
                and len(given) <= REQUEST_ID_CHARS_MAX
                and given.isascii()
                and given.isprintable()
            ):
                self._request_id = given
            elif self.execution_id:
                self._request_id = "req_" + self.execution_id[4:]
            else:
                self._request_id = new_id("req")
        return self._request_id

    def problem(self, error: Exception) -> dict[str, Any]:
        """Return what the caller is told; of a fault of ours, only where to look."""
        path, request_id = self.scope["path"], self.request_id
        if isinstance(error, EngineError):
            return problem_of(error, instance=path, request_id=request_id)
        return problem_body("internal", "", instance=path, request_id=request_id)

    async def refuse(self, error: Exception) -> None:
        """Answer with the error as problem+json."""
        problem = self.problem(error)
        status = problem["status"]
        named = problem_headers(status)
        if isinstance(error, EngineError):
            named |= headers_of(error)
        headers = [(name.encode(), value.encode()) for name, value in named.items()]
        if isinstance(error, MethodNotAllowed):
            headers.append((b"allow", error.allowed.encode()))
        if isinstance(error, PayloadTooLarge):
            headers.append((b"connection", b"close"))  # the rest of the body is not read
        assert (b"content-type", PROBLEM_JSON.encode()) in headers
        await self.answer(status, _encode(problem), headers, json=False)
