"""Wraps every request of the control plane: its id, the size and form of its body, HEAD, OPTIONS.

Path:   server -> here -> FastAPI -> routes
Never:  reads more than BODY_BYTES_MAX of a body; lets an exception out to the server.

The body of an upload is its route's to read (`api.uploads`): it is large, and needs a key first.
So is that of a provider's callback: it may be a form, and its bytes are signed.
"""

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.api.problems import headers_of, problem_body, problem_of, problem_response
from engine.errors import EngineError, PayloadTooLarge
from engine.ids import new_id
from engine.quotas import BODY_BYTES_MAX

BODY_WAIT_S: Final = 30  # a client that takes longer holds memory for nothing
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
CALLBACKS: Final = re.compile(r"/v1/callbacks/[^/]+/[^/]+(/[^/]+)?")
UPLOADS: Final = re.compile(r"/v1/functions(/[^/]+/versions)?")
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_log = structlog.get_logger()


class MalformedJson(EngineError):
    """The caller's: the body is not JSON; says where it stops being it."""

    code = "malformed_json"


class BodyTooSlow(EngineError):
    """The caller's: the body did not arrive in time."""

    code = "request_timeout"

    def __init__(self, wait_s: int = BODY_WAIT_S) -> None:
        super().__init__(f"the body did not arrive within {wait_s} s")


class Edge:
    """ASGI middleware; `allowed(path)` returns the methods that a path has, none if unknown."""

    def __init__(self, app: ASGIApp, *, allowed: Callable[[str], Sequence[str]]) -> None:
        self._app = app
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        answer = _Answer(send, request_id, is_head=scope["method"] == "HEAD")
        try:
            await self._serve(scope, receive, answer)
        except EngineError as error:
            problem = problem_of(error, instance=scope["path"], request_id=request_id)
            headers = headers_of(error)
            if isinstance(error, PayloadTooLarge):
                headers["connection"] = "close"  # the rest of the body is not read
            await problem_response(problem, headers)(scope, receive, answer)
        except Exception:
            _log.exception("request_failed", request_id=request_id, path=scope["path"])
            if answer.started:
                raise  # half an answer is on its way: the server must cut the connection
            problem = problem_body("internal", "", instance=scope["path"], request_id=request_id)
            await problem_response(problem)(scope, receive, answer)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "OPTIONS" and (methods := self._allowed(scope["path"])):
            allow = {"allow": ", ".join(methods)}
            await Response(status_code=204, headers=allow)(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope = dict(scope, method="GET")
        if scope["method"] in _WITH_BODY and not is_upload(scope) and not _is_callback(scope):
            body = await read_body(Headers(scope=scope), receive)
            if body is None:
                return
            if body:
                check_json(body)
            scope, receive = _as_json(scope), replay_body(body, receive)
        await self._app(scope, receive, send)


class _Answer:
    """The `send` of one request: adds the request id, and keeps the body of an answer to HEAD."""

    def __init__(self, send: Send, request_id: str, *, is_head: bool) -> None:
        self._send = send
        self._request_id = request_id
        self._is_head = is_head
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            MutableHeaders(scope=message)["x-request-id"] = self._request_id
            await self._send(message)
            if self._is_head:  # at once: a stream would never end
                await self._send({"type": "http.response.body", "body": b""})
        elif not self._is_head:
            await self._send(message)


def request_id_of(scope: Scope) -> str:
    """Return the caller's X-Request-Id when it is a plain one, else a new id."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else new_id("req")


async def read_body(
    headers: Headers,
    receive: Receive,
    bytes_max: int = BODY_BYTES_MAX,
    *,
    limit_name: str = "request_bytes",
    wait_s: int = BODY_WAIT_S,
) -> bytes | None:
    """Return the whole body, or None when the caller went away.

    Raises:
        PayloadTooLarge: it is, or says that it is, larger than `bytes_max`.
        BodyTooSlow: it did not arrive within `wait_s`.
    """
    announced = headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > bytes_max:
        raise PayloadTooLarge("the body", limit_name, bytes_max, int(announced))
    body = bytearray()
    try:
        async with asyncio.timeout(wait_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                body += message.get("body", b"")
                if len(body) > bytes_max:
                    raise PayloadTooLarge("the body", limit_name, bytes_max, len(body))
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError as error:
        raise BodyTooSlow(wait_s) from error


def check_json(body: bytes) -> None:
    """Refuse what is not strictly JSON: NaN, half characters and numbers without end too.

    Raises:
        MalformedJson: says where.
    """
    try:
        msgspec.json.decode(body)
    except RecursionError as error:
        raise MalformedJson("the JSON is nested too deeply") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise MalformedJson(_where(body, str(error))) from error


def _where(body: bytes, reason: str) -> str:
    try:
        json.loads(body)
    except json.JSONDecodeError as error:
        return f"{error.msg} at line {error.lineno}, column {error.colno} (character {error.pos})"
    except (ValueError, RecursionError):
        pass
    return reason


def is_upload(scope: Scope) -> bool:
    """Say whether the route reads the body itself."""
    return scope["method"] == "POST" and UPLOADS.fullmatch(scope["path"]) is not None


def _is_callback(scope: Scope) -> bool:
    return scope["method"] == "POST" and CALLBACKS.fullmatch(scope["path"]) is not None


def _as_json(scope: Scope) -> Scope:
    """Call every body JSON: `curl -d` says it is a form, and there is nothing else it could be."""
    others = [pair for pair in scope["headers"] if pair[0] != b"content-type"]
    return dict(scope, headers=[*others, (b"content-type", b"application/json")])


def replay_body(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body that was read once more, and then keeps it no more."""
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
