"""The routes that carry the load, as raw ASGI, and the short way of the two busiest of them.

Path:   uvicorn -> here -> invocations, writes or things; all else -> FastAPI (`app`)
        server -> `Hot.take` -> dispatch, or events and journal -> one write of the answer
Never:  answers a write before it is on disk; refuses anything by the short way.
"""

from typing import Any, Final

import msgspec
import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from engine.api.access import INVOKE, Access, Unauthorized, authenticate
from engine.api.invocations import (
    RunEnded,
    find_function,
    invoke,
    new_run,
    serve_http,
    server_timing,
)
from engine.api.keyed import HEADER, Replay, answer_again
from engine.api.ports import Ports
from engine.api.problems import OUR_FAULT, PROBLEM_JSON, headers_of, problem_of
from engine.api.raw import VIA, ClientGone, Draining, MethodNotAllowed, Request, Route
from engine.api.server import Reply
from engine.api.submissions import create_jobs
from engine.api.things import refuse_thing, thing_route
from engine.api.writes import WRITE_BODY, write_device_values, write_gateway
from engine.errors import EngineError, NotFound
from engine.events import check_text, check_values, has_ids
from engine.handlers import first_handler
from engine.ids import new_id
from engine.quotas import PARAMS_BYTES_MAX
from engine.rate_limits import Scope as Limited
from engine.rate_limits import header_lines
from engine.run import Run
from engine.store.journal import Commit
from runtimes.contract import Outcome

RIGHTS_KEPT: Final = 10_000
UNUSUAL: Final = frozenset({b"prefer", b"x-request-id", HEADER, VIA})  # for the short way
UNUSUAL_WRITE: Final = frozenset({HEADER, VIA})
_log = structlog.get_logger()
_encode: Final = msgspec.json.encode


class Hot:
    """The ASGI application; hands what it does not know to `rest`."""

    def __init__(self, rest: ASGIApp, ports: Ports) -> None:
        self._rest = rest
        self._ports = ports
        self._rights: dict[tuple[bytes, bytes], Access] = {}
        self._rights_seen = -1
        self.draining = False  # set by `serve`: from now on these routes refuse
        self.open_count = 0  # requests to these routes that have no answer yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._rest(scope, receive, send)
            return
        route = _route(scope["method"], scope["path"])
        if route is None:
            await self._rest(scope, receive, send)
            return
        request = Request(scope, receive, send)
        self.open_count += 1
        try:
            if self.draining:
                raise Draining("the engine is stopping; try again in a moment")  # noqa: TRY301
            await self._handle(route, request)
        except ClientGone:
            pass
        except Replay as replay:
            await answer_again(request, replay.answer)
        except EngineError as error:
            await _refuse(request, error)
        except Exception as error:  # the loop of requests
            _log.exception("request_failed", path=scope["path"])
            if request.started:
                raise
            await _refuse(request, error)
        finally:
            self.open_count -= 1
            if request.claim is not None:
                request.claim.end()

    async def _handle(self, route: Route, request: Request) -> None:
        handler, arguments = route
        try:
            await handler(self._ports, request, *arguments)
        except (NotFound, Unauthorized):
            # Another node may have made it just now; nothing was begun, so it can begin again.
            if request.started or not await self._ports.catalogue.fresh():
                raise
            await handler(self._ports, request, *arguments)

    # The short way: see `api.server`.

    def is_quick(self, method: str, path: str) -> bool:
        """Say whether this may be a synchronous invoke or a device write."""
        if method != "POST":
            return False
        return path.startswith("/v2/things/") or (
            path.startswith("/v1/functions/") and path.endswith("/invoke")
        )

    def take(self, scope: Scope, body: bytes, reply: Reply) -> bool:
        """Serve the request if nothing about it is unusual; see `server.Quick`."""
        if self.draining:
            return False
        path: str = scope["path"]
        try:
            if path.startswith("/v2/"):
                if not UNUSUAL_WRITE.isdisjoint(dict(scope["headers"])):
                    return False
                return self._quick_write(path[11:], body, reply)
            return self._quick_invoke(path[14:-7], scope, body, reply)
        except (EngineError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return False  # nothing was begun: the route itself says what is wrong

    def _quick_invoke(self, name: str, scope: Scope, body: bytes, reply: Reply) -> bool:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        ports = self._ports
        if scope["query_string"] or not headers.keys().isdisjoint(UNUSUAL):
            return False
        access = self._access(headers.get(b"authorization", b""), headers.get(b"x-project", b""))
        access.require(*INVOKE)
        if not 0 < len(body) <= PARAMS_BYTES_MAX:
            return False
        check_text(body, "")  # one body that is not JSON would spoil the batch it travels in
        function = find_function(ports.catalogue, access.project_id, name)
        execution_id = new_id("exe")
        version = function.choose(execution_id)
        handler = first_handler(version.handlers)
        if handler == "fetch":
            return False
        run = new_run(execution_id, version, handler, "invoke", body, ports.clock())
        standing = None
        if quota := access.requests_per_minute:
            standing = ports.rate_limits.take_if_left(Limited.KEY, access.key_id, quota)
            if standing is None:
                return False

        def on_end(run: Run) -> None:
            self.open_count -= 1
            number = run.execution_id.encode()
            more, wait_s = b"", 0
            if run.outcome is Outcome.SUCCEEDED:
                status, kind, answer = b"200 OK", b"application/json", run.result
                timing = server_timing(run)[0][1]
            else:
                error = run.refused or RunEnded(run)
                problem = problem_of(
                    error, instance=scope["path"], request_id="req_" + run.execution_id[4:]
                )
                for header, text in headers_of(error).items():
                    more += f"{header}: {text}\r\n".encode()
                    wait_s = int(text)
                status = b"%d %b" % (problem["status"], problem["title"].encode())
                kind, answer, timing = PROBLEM_JSON.encode(), _encode(problem), b"total"
            if standing is not None:
                more += header_lines(standing.after(wait_s))
            reply(
                b"%b\r\ncontent-type: %b\r\nexecution-id: %b\r\nx-request-id: req_%b\r\n"
                b"server-timing: %b\r\n%bcontent-length: %d\r\n\r\n%b"
                % (status, kind, number, number[4:], timing, more, len(answer), answer)
            )

        self.open_count += 1
        run.on_end = on_end
        ports.dispatcher.submit(run)
        return True

    def _quick_write(self, token: str, body: bytes, reply: Reply) -> bool:
        ports = self._ports
        device = ports.catalogue.known_device(token)
        if device is None:
            return False
        raw = WRITE_BODY.decode(body).values
        if has_ids(raw):
            return False
        checked = check_values(raw, ports.clock())
        commit = Commit()
        accepted = ports.events.accept(commit, device, checked, source="http")
        if accepted.runs and not ports.queue_room.fits(device.project_id, len(accepted.runs)):
            return False

        told = b""
        if quota := ports.catalogue.allowances(device.project_id).device_requests_per_minute:
            standing = ports.rate_limits.take_if_left(Limited.DEVICE, device.id, quota)
            if standing is None:
                return False
            told = header_lines(standing)

        def done(_result: Any, error: BaseException | None) -> None:
            self.open_count -= 1
            event_id = accepted.event_id.encode()
            if error is None:
                answer = b'{"status":"created","message":"created","event_id":"%b"}' % event_id
                status = b"201 Created"
            else:
                answer = b'{"status":"error","code":503,"message":"%b"}' % OUR_FAULT.encode()
                status = b"503 Service Unavailable"
            try:
                if error is None:
                    ports.backlog.submit(accepted.runs)
            finally:  # it is on disk, whatever becomes of its runs
                reply(
                    b"%b\r\ncontent-type: application/json\r\nx-request-id: req_%b\r\n"
                    b"%bcontent-length: %d\r\n\r\n%b"
                    % (status, event_id[4:], told, len(answer), answer)
                )

        self.open_count += 1
        commit.done = done
        ports.journal.submit(commit)
        return True

    def _access(self, authorization: bytes, project: bytes) -> Access:
        """Return who asks; remembered until keys or projects change."""
        catalogue = self._ports.catalogue
        if self._rights_seen != catalogue.rights_changed_count:
            self._rights_seen = catalogue.rights_changed_count
            self._rights.clear()
        known = self._rights.get((authorization, project))
        if known is None:
            known = authenticate(
                catalogue, authorization.decode("latin-1"), project.decode("latin-1")
            )
            if len(self._rights) >= RIGHTS_KEPT:
                self._rights.clear()
            self._rights[authorization, project] = known
        return known


def _route(method: str, path: str) -> Route | None:
    """Return what serves this request; None: a route of FastAPI."""
    if path.startswith("/v1/"):
        if path.startswith("/v1/functions/") and path.endswith("/invoke"):
            return (invoke, (path[14:-7],)) if method == "POST" else (_only_post, ())
        if method != "POST":
            return None
        if path == "/v1/writes":
            return write_gateway, ()
        if path == "/v1/jobs":
            return create_jobs, ()
        if path.startswith("/v1/devices/") and path.endswith("/values"):
            return write_device_values, (path[12:-7],)
        return None
    if path.startswith("/v2/"):
        return thing_route(method, path)
    if path.startswith("/f/"):
        project, _, rest = path[3:].partition("/")
        name, slash, rest = rest.partition("/")
        return serve_http, (project, name, slash + rest)
    return None


async def _only_post(_ports: Ports, request: Request) -> None:
    raise MethodNotAllowed(request.scope["method"], "POST")


async def _refuse(request: Request, error: Exception) -> None:
    refuse = refuse_thing if request.scope["path"].startswith("/v2/") else Request.refuse
    await refuse(request, error)
