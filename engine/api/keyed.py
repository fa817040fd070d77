"""The header `Idempotency-Key`: a POST that is sent again is answered again, and done once.

Path:   edge -> `Keyed` -> FastAPI;   hot -> a raw route -> `claim_key` -> ... -> `Request.answer`
Never:  looks at a key before the caller is known: keys are the project's, of /v2 the device's.

See `engine.idempotency` for what is promised.
"""

import asyncio
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.api.access import DEVELOP, Access, ForbiddenScope, access_of
from engine.api.edge import BODY_WAIT_S, is_upload, read_body, replay_body
from engine.api.platform import Catalogue
from engine.api.ports import Ports
from engine.api.raw import Request
from engine.api.uploads import UPLOAD_WAIT_S
from engine.idempotency import Answer, Claim, Idempotency, check_key, fingerprint
from engine.quotas import BODY_BYTES_MAX, UPLOAD_BYTES_MAX

HEADER: Final = b"idempotency-key"
REPLAYED: Final = (b"idempotent-replayed", b"true")


class Replay(Exception):
    """The request was answered before: that answer is to be given again."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        super().__init__(answer.status)


class Keyed:
    """ASGI middleware within the edge: what the control plane creates, it creates once a key."""

    def __init__(self, app: ASGIApp, *, keys: Idempotency, catalogue: Catalogue) -> None:
        self._app = app
        self._keys = keys
        self._catalogue = catalogue

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = _key_of(scope)
        if key is None:
            await self._app(scope, receive, send)
            return
        access = await access_of(self._catalogue, Headers(scope=scope))
        check_key(key)
        read = await _read(scope, receive, access)
        if read is None:
            return
        request, receive = read
        found = await self._keys.claim(
            key, request, project_id=access.project_id, scopes=access.scopes
        )
        if isinstance(found, Answer):
            await _give_again(_seen_by(found, access.scopes), send)
        else:
            await self._serve(found, scope, receive, send)

    async def _serve(self, claim: Claim, scope: Scope, receive: Receive, send: Send) -> None:
        held = _Held()
        try:
            with claim.stamping():
                await self._app(scope, receive, held)
            if held.messages:
                start, *parts = held.messages
                body = b"".join(part.get("body", b"") for part in parts)
                await claim.settle(start["status"], start["headers"], body)
        finally:
            claim.end()
        for message in held.messages:
            await send(message)


class _Held:
    """The `send` of the routes behind: keeps the whole answer back until it is stored."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def __call__(self, message: Message) -> None:
        self.messages.append(message)


async def claim_key(
    ports: Ports,
    request: Request,
    body: bytes,
    *,
    project_id: str,
    scopes: frozenset[str] = frozenset(),
    of: str = "",
) -> None:
    """Claim the key of a raw request; call it only if `request.key` is not None.

    From then on `request.answer` sees to the claim. `of`: the device whose key it is.

    Raises:
        Replay: it has been answered before.
        EngineError: as `Idempotency.claim`; or the key is none.
    """
    assert request.key is not None
    if request.claim is not None:
        return  # the route begins again: see `Hot`
    scope = request.scope
    asked = fingerprint(scope["method"], scope["path"], scope["query_string"], body)
    found = await ports.idempotency.claim(
        check_key(request.key), asked, project_id=project_id, scopes=scopes, of=of
    )
    if isinstance(found, Answer):
        raise Replay(_seen_by(found, scopes))
    request.claim = found


async def answer_again(request: Request, answer: Answer) -> None:
    """Answer a raw request as it was answered before."""
    await request.answer(answer.status, answer.body, [*answer.headers, REPLAYED], json=False)


async def _read(scope: Scope, receive: Receive, access: Access) -> tuple[str, Receive] | None:
    """Return the request's fingerprint, and what gives its body again; None: the caller left.

    The body itself is not kept: of an upload it is up to 15 MB.
    """
    if is_upload(scope):
        access.require(*DEVELOP)  # as its route does, before it reads
        bytes_max, limit_name, wait_s = UPLOAD_BYTES_MAX, "upload_bytes", UPLOAD_WAIT_S
    else:
        bytes_max, limit_name, wait_s = BODY_BYTES_MAX, "request_bytes", BODY_WAIT_S
    headers = Headers(scope=scope)
    body = await read_body(headers, receive, bytes_max, limit_name=limit_name, wait_s=wait_s)
    if body is None:
        return None
    asked = (scope["method"], scope["path"], scope["query_string"], body)
    # Hashing 15 MB takes some 10 ms.
    request = await asyncio.to_thread(fingerprint, *asked)
    return request, replay_body(body, receive)


def _key_of(scope: Scope) -> str | None:
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    found: bytes | None = next((text for name, text in scope["headers"] if name == HEADER), None)
    return None if found is None else found.decode("latin-1")


def _seen_by(answer: Answer, scopes: frozenset[str]) -> Answer:
    """Return the answer: it may show what only those may see who may do what was done.

    Raises:
        ForbiddenScope: another API key made the request, with more rights than this one's.
    """
    if "admin" not in scopes and not answer.scopes <= scopes:
        raise ForbiddenScope(tuple(sorted(answer.scopes)), scopes)
    return answer


async def _give_again(answer: Answer, send: Send) -> None:
    headers = [*answer.headers, REPLAYED, (b"content-length", b"%d" % len(answer.body))]
    start: dict[str, Any] = {"type": "http.response.start", "status": answer.status}
    await send(start | {"headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
