"""Counts requests to the control plane for their API keys, and tells each answer what is left.

Path:   edge -> `Limited` -> `Keyed` -> FastAPI; raw routes count by `Request.access`
Never:  counts a key that does not exist; lets a refused request reach a route, or claim a key.
"""

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.api.access import Unauthorized, authenticate
from engine.api.platform import Catalogue
from engine.api.problems import headers_of, problem_of, problem_response
from engine.rate_limits import RateLimited, RateLimits, Standing, headers_of_standings
from engine.rate_limits import Scope as Scoped


class Limited:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, *, limits: RateLimits, catalogue: Catalogue) -> None:
        self._app = app
        self._limits = limits
        self._catalogue = catalogue

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            asking = authenticate(self._catalogue, Headers(scope=scope).get("authorization"))
        except Unauthorized:
            await self._app(scope, receive, send)  # the route says so, or needs no key
            return
        per_minute = asking.requests_per_minute
        if not per_minute:
            await self._app(scope, receive, send)
            return
        try:
            standing = self._limits.take(Scoped.KEY, asking.key_id, per_minute)
        except RateLimited as error:
            request_id = scope["state"]["request_id"]
            problem = problem_of(error, instance=scope["path"], request_id=request_id)
            refuse = problem_response(problem, headers_of(error))
            await refuse(scope, receive, _Told(send, error.standing))
        else:
            await self._app(scope, receive, _Told(send, standing))


class _Told:
    """The `send` of one request: adds where its key stands."""

    def __init__(self, send: Send, standing: Standing) -> None:
        self._send = send
        self._standing = standing

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            standing = self._standing.after(int(headers.get("retry-after", 0)))
            for name, text in headers_of_standings([standing]):
                headers[name.decode()] = text.decode()
        await self._send(message)
