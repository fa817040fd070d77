"""The routes that carry the load, as raw ASGI: invoke, device writes, /f, the device API /v2.

Path:   uvicorn -> here -> events or dispatch -> journal -> the answer; all else -> FastAPI (`app`)
Never:  answers a write before it is on disk; lets one bad item of a batch spoil the others.
"""

import asyncio
import base64
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any, Final
from urllib.parse import parse_qs, unquote

import msgspec
import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.api.access import INVOKE, Access, authenticate
from engine.api.edge import BodyTooSlow, check_json
from engine.api.problems import OUR_FAULT, PROBLEM_JSON, problem_body, problem_headers, problem_of
from engine.api.server import Reply
from engine.backlog import Backlog
from engine.catalogue import Catalogue, Device, Function, Version
from engine.clock import Clock, iso
from engine.dispatch import Dispatcher
from engine.errors import EngineError, Invalid, NotFound, PayloadTooLarge
from engine.events import Accepted, Events, RawValue, RawWrite, check_text, check_values, parse_time
from engine.ids import new_id
from engine.quotas import BATCH_ITEMS_MAX, EVENT_BYTES_MAX, PARAMS_BYTES_MAX
from engine.run import Run
from engine.store.database import Database
from engine.store.device_values import Window, list_resources, read_timeline
from engine.store.journal import Commit, Journal
from engine.store.tables import run_queue
from runtimes.contract import Outcome

WRITE: Final = ("ingest", "operate")
GATEWAY_BYTES_MAX: Final = 16 * 1024 * 1024
THING_READ_MAX: Final = 100
RIGHTS_KEPT: Final = 10_000
REQUEST_ID_CHARS_MAX: Final = 128
BODY_WAIT_S: Final = 30  # a client that takes longer holds memory for nothing
INVOKE_ORDER: Final = (
    "main", "default", "job", "fetch", "afterStore", "trigger", "scheduled", "decodeUplink",
    "beforeStore", "queue",
)  # fmt: skip
_OUTCOME_CODE: Final[Mapping[Outcome, str]] = {
    Outcome.FAILED: "function_error",
    Outcome.TIMED_OUT: "function_timeout",
}
_JSON: Final = (b"content-type", b"application/json")
_log = structlog.get_logger()
_encode: Final = msgspec.json.encode
_WRITE_BODY: Final = msgspec.json.Decoder(RawWrite)


class Draining(EngineError):
    """The node is stopping: another one, or this one in a moment, will take the request."""

    code = "draining"


class MethodNotAllowed(EngineError):
    """The path takes another method."""

    code = "method_not_allowed"

    def __init__(self, asked: str, allowed: str) -> None:
        self.allowed = allowed
        super().__init__(f"{asked} is not possible here; use {allowed}")


class BadAnswer(EngineError):
    """The `fetch` handler made a response that cannot be sent."""

    code = "function_error"

    def __init__(self, run: Run, why: str) -> None:
        self.extra = {"execution_id": run.execution_id}
        super().__init__(f"the response of the fetch handler cannot be sent: {why}")


class ClientGone(Exception):
    """The client closed the connection before its request was whole: nobody waits for an answer."""


class RunEnded(EngineError):
    """The function ran and did not succeed; says how it ended, and where to read more."""

    def __init__(self, run: Run, *, public: bool = False) -> None:
        """Build the message; `public`: anybody may read it, so the error stays in the log."""
        assert run.outcome is not None
        self.code = _OUTCOME_CODE.get(run.outcome, run.outcome.value)
        if run.unstored:
            self.code = "store_failed"
        self.extra: dict[str, Any] = {"execution_id": run.execution_id}
        if public:
            super().__init__(f"the function ended as {run.outcome}; its log has more")
            return
        if run.error is not None:
            self.extra["error"] = msgspec.to_builtins(run.error)
        if run.limit is not None:
            hit = run.limit
            self.limit = msgspec.to_builtins(hit)
            detail = f"{run.outcome}: {hit.name} is {hit.value}, used {hit.used}"
        elif run.error is not None:
            detail = f"{run.error.name}: {run.error.message}"
        else:
            detail = f"the run ended as {run.outcome}"
        super().__init__(detail)


class _Item(msgspec.Struct):
    """One device's write in a gateway's request."""

    values: list[RawValue]
    device: str | None = None
    token: str | None = None


_ITEMS: Final = msgspec.json.Decoder(list[_Item])
_RAW_ITEMS: Final = msgspec.json.Decoder(list[msgspec.Raw])
_ITEM: Final = msgspec.json.Decoder(_Item)
_PARAMS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Hot:
    """The ASGI application; hands what it does not know to `rest`."""

    def __init__(
        self,
        rest: ASGIApp,
        *,
        catalogue: Catalogue,
        database: Database,
        journal: Journal,
        events: Events,
        backlog: Backlog,
        dispatcher: Dispatcher,
        clock: Clock,
    ) -> None:
        self._rest = rest
        self._catalogue = catalogue
        self._database = database
        self._journal = journal
        self._events = events
        self._backlog = backlog
        self._dispatcher = dispatcher
        self._clock = clock
        self._rights: dict[tuple[bytes, bytes], Access] = {}
        self._rights_seen = -1
        self.draining = False
        self.open_count = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._rest(scope, receive, send)
            return
        route = self._route(scope["method"], scope["path"])
        if route is None:
            await self._rest(scope, receive, send)
            return
        handler, arguments = route
        request = _Request(scope, receive, send)
        self.open_count += 1
        try:
            if self.draining:
                raise Draining("the engine is stopping; try again in a moment")  # noqa: TRY301
            await handler(request, *arguments)
        except ClientGone:
            pass
        except EngineError as error:
            await request.refuse(error)
        except Exception as error:  # the loop of requests
            _log.exception("request_failed", path=scope["path"])
            if request.started:
                raise
            await request.refuse(error)
        finally:
            self.open_count -= 1

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
                return self._quick_write(path[11:], body, reply)
            return self._quick_invoke(path[14:-7], scope, body, reply)
        except (EngineError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return False  # nothing was begun: the route itself says what is wrong

    def _quick_invoke(self, name: str, scope: Scope, body: bytes, reply: Reply) -> bool:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if scope["query_string"] or b"prefer" in headers or b"x-request-id" in headers:
            return False
        access = self._access(headers.get(b"authorization", b""), headers.get(b"x-project", b""))
        access.require(*INVOKE)
        if not 0 < len(body) <= PARAMS_BYTES_MAX:
            return False
        check_text(body, "")  # one body that is not JSON would spoil the batch it travels in
        function = self._function(access.project_id, name)
        execution_id = new_id("exe")
        version = function.choose(execution_id)
        handler = _first_handler(version.handlers)
        if handler == "fetch":
            return False
        run = self._new_run(execution_id, version, handler, "invoke", body)

        def on_end(run: Run) -> None:
            self.open_count -= 1
            number = run.execution_id.encode()
            if run.outcome is Outcome.SUCCEEDED:
                status, kind, answer = b"200 OK", b"application/json", run.result
                timing = _timing(run)[0][1]
            else:
                problem = problem_of(
                    RunEnded(run), instance=scope["path"], request_id="req_" + run.execution_id[4:]
                )
                status = b"%d %b" % (problem["status"], problem["title"].encode())
                kind, answer, timing = PROBLEM_JSON.encode(), _encode(problem), b"total"
            reply(
                b"%b\r\ncontent-type: %b\r\nexecution-id: %b\r\nx-request-id: req_%b\r\n"
                b"server-timing: %b\r\ncontent-length: %d\r\n\r\n%b"
                % (status, kind, number, number[4:], timing, len(answer), answer)
            )

        self.open_count += 1
        run.on_end = on_end
        self._dispatcher.submit(run)
        return True

    def _quick_write(self, token: str, body: bytes, reply: Reply) -> bool:
        device = self._catalogue.known_device(token)
        if device is None:
            return False
        checked = check_values(_WRITE_BODY.decode(body).values, self._clock())
        commit = Commit()
        accepted = self._events.accept(commit, device, checked, source="http")

        def done(_result: Any, error: BaseException | None) -> None:
            self.open_count -= 1
            event_id = accepted.event_id.encode()
            if error is None:
                answer = b'{"status":"created","message":"created","event_id":"%b"}' % event_id
                status = b"201 Created"
                self._start(accepted.runs)
            else:
                answer = b'{"status":"error","code":503,"message":"%b"}' % OUR_FAULT.encode()
                status = b"503 Service Unavailable"
            reply(
                b"%b\r\ncontent-type: application/json\r\nx-request-id: req_%b\r\n"
                b"content-length: %d\r\n\r\n%b" % (status, event_id[4:], len(answer), answer)
            )

        self.open_count += 1
        commit.done = done
        self._journal.submit(commit)
        return True

    def _access(self, authorization: bytes, project: bytes) -> Access:
        """Return who asks; remembered until keys or projects change."""
        if self._rights_seen != self._catalogue.rights_changed_count:
            self._rights_seen = self._catalogue.rights_changed_count
            self._rights.clear()
        known = self._rights.get((authorization, project))
        if known is None:
            known = authenticate(
                self._catalogue, authorization.decode("latin-1"), project.decode("latin-1")
            )
            if len(self._rights) >= RIGHTS_KEPT:
                self._rights.clear()
            self._rights[authorization, project] = known
        return known

    def _route(
        self, method: str, path: str
    ) -> tuple[Callable[..., Awaitable[None]], tuple[str, ...]] | None:
        if path.startswith("/v1/"):
            if path.startswith("/v1/functions/") and path.endswith("/invoke"):
                return (self._invoke, (path[14:-7],)) if method == "POST" else (self._only_post, ())
            if method != "POST":
                return None
            if path == "/v1/writes":
                return self._gateway, ()
            if path.startswith("/v1/devices/") and path.endswith("/values"):
                return self._device_values, (path[12:-7],)
            return None
        if path.startswith("/v2/"):
            return self._thing_route(method, path)
        if path.startswith("/f/"):
            project, _, rest = path[3:].partition("/")
            name, slash, rest = rest.partition("/")
            return self._http, (project, name, slash + rest)
        return None

    def _thing_route(
        self, method: str, path: str
    ) -> tuple[Callable[..., Awaitable[None]], tuple[str, ...]]:
        parts = path[4:].strip("/").split("/")
        match (method, *parts):
            case ("POST", "things", token):
                return self._thing_write, (token,)
            case ("GET", "things", token, "resources"):
                return self._thing_resources, (token,)
            case ("GET", "things", token, "resources", key):
                return self._thing_read, (token, key)
            case ("POST", "things", token, "code", "functions" | "function", name):
                return self._thing_call, (token, name)
            case _:
                return self._no_thing_route, ()

    # /v1/functions/{name}/invoke

    async def _invoke(self, request: "_Request", name: str) -> None:
        access = request.access(self._catalogue)
        access.require(*INVOKE)
        body = await request.body(PARAMS_BYTES_MAX, "params_bytes") or b"null"
        check_json(body)
        check_text(body, "")
        function = self._function(access.project_id, name)
        execution_id = new_id("exe")
        version = function.choose(execution_id)
        handler = _invoked_handler(version, request.query.get("handler"))
        if handler == "fetch":
            body = _encode(
                {
                    "method": "POST",
                    "url": "http://invoke/",
                    "headers": [["content-type", "application/json"]],
                    "body": body.decode(),
                    "body_base64": False,
                }
            )
        run = self._new_run(execution_id, version, handler, "invoke", body)
        if "respond-async" in request.header(b"prefer"):
            await self._respond_async(request, run)
            return
        await self._run(run)
        request.execution_id = run.execution_id
        if run.outcome is not Outcome.SUCCEEDED:
            raise RunEnded(run)
        await request.answer(200, run.result, _timing(run))

    async def _respond_async(self, request: "_Request", run: Run) -> None:
        run.queued = True
        run.on_end = self._backlog.ended
        commit = Commit()
        version = run.version
        commit.insert(
            run_queue,
            (
                run.execution_id, version.project_id, version.function_id, run.cause, run.handler,
                None, None, run.input.decode(), run.root_id, 0, run.created_ms,
            ),
        )  # fmt: skip
        await self._journal.commit(commit)
        self._backlog.submit((run,))
        body = _encode({"execution_id": run.execution_id, "status": "queued"})
        location = (b"location", f"/v1/executions/{run.execution_id}".encode())
        request.execution_id = run.execution_id
        await request.answer(202, body, [location])

    def _new_run(
        self,
        execution_id: str,
        version: Version,
        handler: str,
        cause: str,
        body: bytes,
        device: Device | None = None,
    ) -> Run:
        return Run(
            execution_id=execution_id,
            version=version,
            handler=handler,
            cause=cause,
            limits=version.limits(handler),
            input=body,
            created_ms=self._clock(),
            created_ns=time.monotonic_ns(),
            root_id=execution_id,
            device=device,
        )

    async def _run(self, run: Run) -> None:
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_end(_run: Run) -> None:
            if not ended.done():
                ended.set_result(None)

        run.on_end = on_end
        self._dispatcher.submit(run)
        await ended
        if run.outcome is Outcome.CANCELLED:
            raise Draining("the engine stopped before the run had ended; try again in a moment")

    def _function(self, project_id: str, name: str) -> Function:
        function = self._catalogue.function(project_id, name)
        if function is None:
            function = self._catalogue.function_by_id(name)
            if function is None or function.project_id != project_id:
                raise NotFound("function", unquote(name))
        return function

    # /f/{project}/{function}/...

    async def _http(self, request: "_Request", project: str, name: str, _rest: str) -> None:
        project_id = self._catalogue.project(project)
        function = None if project_id is None else self._catalogue.function(project_id, name)
        if function is None:
            raise NotFound("function", f"{project}/{name}")
        execution_id = new_id("exe")
        version = function.choose(execution_id)
        if "fetch" not in version.handlers:
            raise NotFound("fetch handler in function", name)
        body = await request.body(PARAMS_BYTES_MAX, "request_bytes")
        run = self._new_run(execution_id, version, "fetch", "http", request.as_fetch_input(body))
        request.execution_id = execution_id
        await self._run(run)
        if run.outcome is not Outcome.SUCCEEDED:
            raise RunEnded(run, public=True)
        status, headers, data = _fetch_answer(run)
        await request.answer(status, data, [*headers, *_timing(run)], json=False)

    # /v1/writes, /v1/devices/{id}/values

    async def _device_values(self, request: "_Request", device_id: str) -> None:
        access = request.access(self._catalogue)
        access.require(*WRITE)
        raw = _decode_write(await request.body(2 * EVENT_BYTES_MAX, "event_bytes"))
        device = await self._catalogue.device_by_id(access.project_id, device_id)
        accepted = await self._accept(device, raw.values)
        body = {
            "event_id": accepted.event_id,
            "values": len(raw.values),
            "executions": [run.execution_id for run in accepted.runs],
        }
        await request.answer(201, _encode(body))

    async def _accept(self, device: Device, raw: list[RawValue]) -> Accepted:
        checked = check_values(raw, self._clock())
        commit = Commit()
        accepted = self._events.accept(commit, device, checked, source="http")
        await self._journal.commit(commit)
        self._start(accepted.runs)
        return accepted

    def _start(self, runs: list[Run]) -> None:
        for run in runs:
            run.on_end = self._backlog.ended
        self._backlog.submit(runs)

    async def _gateway(self, request: "_Request") -> None:
        access = request.access(self._catalogue)
        access.require(*WRITE)
        body = await request.body(GATEWAY_BYTES_MAX, "gateway_bytes")
        items = _decode_items(body)
        if not 1 <= len(items) <= BATCH_ITEMS_MAX:
            raise Invalid(f"has {len(items)} items; 1 to {BATCH_ITEMS_MAX} are allowed", "")
        commit = Commit()
        results: list[dict[str, Any]] = []
        runs: list[Run] = []
        now_ms = self._clock()
        for item in items:
            try:
                if isinstance(item, Invalid):
                    raise item
                device = await self._item_device(access, item)
                checked = check_values(item.values, now_ms)
            except EngineError as error:
                problem = problem_of(error, instance="", request_id="")
                results.append(
                    {"status": problem["status"], "code": error.code, "detail": str(error)}
                )
                continue
            accepted = self._events.accept(commit, device, checked, source="gateway")
            runs += accepted.runs
            results.append(
                {
                    "status": 201,
                    "event_id": accepted.event_id,
                    "executions": [run.execution_id for run in accepted.runs],
                }
            )
        if commit.inserts:
            await self._journal.commit(commit)
        self._start(runs)
        accepted_count = sum(result["status"] == 201 for result in results)  # noqa: PLR2004
        rejected_count = len(results) - accepted_count
        answer = {"items": results, "accepted": accepted_count, "rejected": rejected_count}
        await request.answer(200, _encode(answer))

    async def _item_device(self, access: Access, item: _Item) -> Device:
        if (item.token is None) == (item.device is None):
            raise Invalid("give either device or token", "/device")
        if item.token is None:
            assert item.device is not None
            return await self._catalogue.device_by_id(access.project_id, item.device)
        device = self._catalogue.known_device(item.token)
        if device is None:
            device = await self._catalogue.device_by_token(item.token)
        if device is None or device.project_id != access.project_id:
            raise NotFound("device with the token", item.token[:6] + "...")
        return device

    # /v2: the device API of thethings.iO

    async def _thing(self, request: "_Request", token: str) -> Device:
        request.thing_api = True
        device = self._catalogue.known_device(token)
        if device is None:
            device = await self._catalogue.device_by_token(token)
        if device is None:
            raise _ThingError(401, "Invalid thing token")
        return device

    async def _thing_write(self, request: "_Request", token: str) -> None:
        device = await self._thing(request, token)
        raw = _decode_write(await request.body(2 * EVENT_BYTES_MAX, "event_bytes"))
        accepted = await self._accept(device, raw.values)
        await request.answer(
            201,
            b'{"status":"created","message":"created","event_id":"%b"}'
            % accepted.event_id.encode(),
        )

    async def _thing_resources(self, request: "_Request", token: str) -> None:
        device = await self._thing(request, token)
        keys = await self._database.read(list_resources, device.id)
        await request.answer(200, _encode([{"key": key} for key in keys]))

    async def _thing_read(self, request: "_Request", token: str, key: str) -> None:
        device = await self._thing(request, token)
        key, query = unquote(key), request.query
        try:
            limit = int(query.get("limit", "1"))
        except ValueError:
            raise _ThingError(400, "limit must be a whole number from 1 to 100") from None
        window = Window(
            start_ms=_thing_time(query.get("startDate")),
            end_ms=_thing_time(query.get("endDate")),
            limit=min(THING_READ_MAX, max(1, limit)),
        )
        found = await self._database.read(read_timeline, device.id, key, window)
        if not found and key not in await self._database.read(list_resources, device.id):
            raise _ThingError(404, f"the thing has no resource {key!r}")
        items = []
        for value in found:
            item = {
                "key": value.key,
                "value": msgspec.Raw(value.value_json.encode()),
                "datetime": iso(value.at_ms),
            }
            if value.geo_json is not None:
                item["geo"] = msgspec.Raw(value.geo_json.encode())
            items.append(item)
        await request.answer(200, _encode(items))

    async def _thing_call(self, request: "_Request", token: str, name: str) -> None:
        device = await self._thing(request, token)
        body = await request.body(PARAMS_BYTES_MAX, "params_bytes")
        check_json(body or b"null")
        check_text(body or b"null", "")
        try:
            params = bytes(_PARAMS.decode(body)["params"])
        except (msgspec.MsgspecError, KeyError):
            raise _ThingError(400, 'the body must be {"params": <any JSON>}') from None
        function = self._function(device.project_id, name)
        execution_id = new_id("exe")
        version = function.choose(execution_id)
        handler = _invoked_handler(version, None)
        run = self._new_run(execution_id, version, handler, "invoke", params, device)
        request.execution_id = execution_id
        await self._run(run)
        if run.outcome is not Outcome.SUCCEEDED:
            message = run.error.message if run.error is not None else str(RunEnded(run))
            raise _ThingError(400 if run.outcome is Outcome.FAILED else 500, message)
        await request.answer(200, run.result, _timing(run))

    async def _only_post(self, request: "_Request") -> None:
        raise MethodNotAllowed(request.scope["method"], "POST")

    async def _no_thing_route(self, request: "_Request") -> None:
        request.thing_api = True
        if request.scope["path"].rstrip("/") == "/v2":
            raise _ThingError(401, "Invalid session token")
        raise _ThingError(404, "there is no such route")


class _FetchAnswer(msgspec.Struct):
    status: int
    headers: list[tuple[str, str]]
    body: str | None
    body_base64: bool


STATUS_MIN, STATUS_MAX = 200, 599
UNPROCESSABLE: Final = 422
_BODYLESS: Final = frozenset({204, 205, 304})
_HEADER_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")  # RFC 9110, 5.6.2
_HEADER_BREAK: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_OWN_HEADERS: Final = frozenset(
    {"content-length", "transfer-encoding", "connection", "execution-id", "x-request-id", "date"}
)


def _fetch_answer(run: Run) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Return status, headers and body of what the handler answered.

    Raises:
        BadAnswer: the guest tampered with its Response, or a header is none.
    """
    try:
        answer = msgspec.json.decode(run.result, type=_FetchAnswer)
        content = answer.body or ""
        data = base64.b64decode(content) if answer.body_base64 else content.encode()
        headers = [
            (name.lower().encode("ascii"), value.encode("latin-1"))
            for name, value in answer.headers
            if name.lower() not in _OWN_HEADERS
        ]
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadAnswer(run, str(error)) from None
    if not STATUS_MIN <= answer.status <= STATUS_MAX:
        raise BadAnswer(run, f"status {answer.status}")
    for name, value in headers:
        if not _HEADER_NAME.fullmatch(name) or _HEADER_BREAK.search(value):
            raise BadAnswer(run, f"header {name.decode()!r}")
    if answer.status in _BODYLESS:
        data = b""
    return answer.status, headers, data


class _ThingError(EngineError):
    """An error of the device API: its own envelope, not a problem+json."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


class _Request:
    """One request: what a handler asks of it, and its one answer."""

    __slots__ = (
        "_headers", "_receive", "_request_id", "_send", "execution_id", "scope", "started",
        "thing_api",
    )  # fmt: skip

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        self.execution_id = ""
        self._request_id = ""
        self.thing_api = False
        self.started = False

    @property
    def query(self) -> dict[str, str]:
        text = self.scope["query_string"]
        if not text:
            return {}
        return {name: values[-1] for name, values in parse_qs(text.decode("latin-1")).items()}

    def header(self, name: bytes) -> str:
        return self._headers.get(name, b"").decode("latin-1")

    def access(self, catalogue: Catalogue) -> Access:
        return authenticate(catalogue, self.header(b"authorization"), self.header(b"x-project"))

    async def body(self, bytes_max: int, limit_name: str) -> bytes:
        """Return the body.

        Raises:
            PayloadTooLarge: it is, or says that it is, larger than `bytes_max`.
        """
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
        self.started = True
        sent = [(b"x-request-id", self.request_id.encode()), *headers]
        if json:
            sent.append(_JSON)
        if self.execution_id:
            sent.append((b"execution-id", self.execution_id.encode()))
        sent.append((b"content-length", b"%d" % len(body)))
        await self._send({"type": "http.response.start", "status": status, "headers": sent})
        if self.scope["method"] == "HEAD":
            body = b""
        await self._send({"type": "http.response.body", "body": body})

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

    async def refuse(self, error: Exception) -> None:
        """Answer with the error: problem+json, or the device API's own envelope."""
        path, request_id = self.scope["path"], self.request_id
        if isinstance(error, EngineError):
            problem = problem_of(error, instance=path, request_id=request_id)
        else:
            problem = problem_body("internal", "", instance=path, request_id=request_id)
        status = error.status if isinstance(error, _ThingError) else problem["status"]
        if status == UNPROCESSABLE and path.startswith("/v2/"):
            status = 400  # the device API of old knows no 422
        if self.thing_api or path.startswith("/v2/"):
            message = str(error) if isinstance(error, _ThingError) else problem["detail"]
            body = {"status": "error", "code": status, "message": message}
            await self.answer(status, _encode(body))
            return
        headers = [
            (name.encode(), value.encode()) for name, value in problem_headers(status).items()
        ]
        if isinstance(error, MethodNotAllowed):
            headers.append((b"allow", error.allowed.encode()))
        if isinstance(error, PayloadTooLarge):
            headers.append((b"connection", b"close"))  # the rest of the body is not read
        assert (b"content-type", PROBLEM_JSON.encode()) in headers
        await self.answer(status, _encode(problem), headers, json=False)


def _thing_time(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_time(text.replace(" ", "+"))  # a + in a query is a space
    except ValueError as error:
        raise _ThingError(400, str(error)) from None


def _invoked_handler(version: Version, asked: str | None) -> str:
    if asked is not None:
        if asked not in version.handlers:
            known = ", ".join(version.handlers)
            raise Invalid(
                f"there is no handler {asked[:80]!r}; this version has {known}", "?handler"
            )
        return asked
    return _first_handler(version.handlers)


@lru_cache(maxsize=1024)
def _first_handler(handlers: tuple[str, ...]) -> str:
    return next(name for name in INVOKE_ORDER if name in handlers)


def _timing(run: Run) -> list[tuple[bytes, bytes]]:
    text = b"queue;dur=%.3f, run;dur=%.3f, cpu;dur=%.3f" % (
        run.queue_ns / 1e6, run.wall_ns / 1e6, run.cpu_ns / 1e6,
    )  # fmt: skip
    return [(b"server-timing", text)]


def _decode_write(body: bytes) -> RawWrite:
    try:
        return _WRITE_BODY.decode(body)
    except msgspec.ValidationError as error:
        raise Invalid(*_explained(error)) from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        check_json(body)
        raise Invalid('the body must be {"values": [{"key", "value"}, ...]}', "") from None


def _decode_items(body: bytes) -> list[_Item | Invalid]:
    """Return the items; one that is not well-formed as its error."""
    try:
        return list(_ITEMS.decode(body))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        check_json(body)
    try:
        raw = _RAW_ITEMS.decode(body)
    except msgspec.MsgspecError:
        raise Invalid("the body must be a list of {device or token, values}", "") from None
    items: list[_Item | Invalid] = []
    for item in raw:
        try:
            items.append(_ITEM.decode(item))
        except msgspec.ValidationError as error:
            items.append(Invalid(*_explained(error)))
    return items


def _explained(error: msgspec.ValidationError) -> tuple[str, str]:
    """Return message and JSON pointer of what msgspec says: `... - at `$.values[0].key``."""
    message, _, place = str(error).partition(" - at `")
    pointer = place.rstrip("`").removeprefix("$").replace("[", ".").replace("]", "")
    return message, pointer.replace(".", "/")
