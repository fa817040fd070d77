"""The raw routes that run a function: `/v1/functions/{name}/invoke` and `/f/{project}/{function}`.

Path:   hot -> here -> dispatch -> the answer; with `respond-async` -> journal -> 202 -> backlog
        things, and the short way in hot, begin and end their runs with the same functions
Never:  answers 202 before the run is on disk; sends a header that a guest could break out of.
"""

import asyncio
import base64
import re
import time
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote

import msgspec

from engine.api.access import INVOKE
from engine.api.edge import check_json
from engine.api.keyed import claim_key
from engine.api.ports import Ports
from engine.api.raw import Draining, Request
from engine.breakers import BreakerOpen, HeldBack
from engine.catalogue import Catalogue, Device, Function, Version
from engine.causality import Above
from engine.dispatch import Dispatcher
from engine.enqueue import as_declared, enqueue
from engine.errors import EngineError, NotFound, QuotaExceeded
from engine.events import check_text
from engine.handlers import asked_handler, handler_input
from engine.ids import new_id
from engine.quotas import PARAMS_BYTES_MAX
from engine.run import Run
from engine.store.journal import Commit
from runtimes.contract import Outcome

_OUTCOME_CODE: Final[Mapping[Outcome, str]] = {
    Outcome.FAILED: "function_error",
    Outcome.TIMED_OUT: "function_timeout",
}
STATUS_MIN, STATUS_MAX = 200, 599
_BODYLESS: Final = frozenset({204, 205, 304})
_HEADER_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")  # RFC 9110, 5.6.2
_HEADER_BREAK: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_OWN_HEADERS: Final = frozenset(
    {"content-length", "transfer-encoding", "connection", "execution-id", "x-request-id", "date"}
)
_encode: Final = msgspec.json.encode


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


class NoRoom(EngineError):
    """What the public is told of an allowance that is used up: none of the project's numbers."""

    code = QuotaExceeded.code

    def __init__(self, of: QuotaExceeded) -> None:
        self.retry_after_s = of.retry_after_s
        super().__init__("there is no room for more at the moment; try again later")


class BadAnswer(EngineError):
    """The `fetch` handler made a response that cannot be sent."""

    code = "function_error"

    def __init__(self, run: Run, why: str) -> None:
        self.extra = {"execution_id": run.execution_id}
        super().__init__(f"the response of the fetch handler cannot be sent: {why}")


class _FetchAnswer(msgspec.Struct):
    status: int
    headers: list[tuple[str, str]]
    body: str | None
    body_base64: bool


async def invoke(ports: Ports, request: Request, name: str) -> None:
    """Serve `/v1/functions/{name}/invoke`."""
    access = request.access(ports)
    access.require(*INVOKE)
    body = await request.body(PARAMS_BYTES_MAX, "params_bytes") or b"null"
    check_json(body)
    check_text(body, "")
    if request.key is not None:
        await claim_key(ports, request, body, project_id=access.project_id, scopes=access.scopes)
    function = find_function(ports.catalogue, access.project_id, name)
    execution_id = new_id("exe")
    version = function.choose(execution_id)
    handler = asked_handler(version.handlers, request.query.get("handler"), "?handler")
    given = handler_input(handler, body)
    above = request.above_call()
    run = new_run(execution_id, version, handler, "invoke", given, ports.clock(), above=above)
    if "respond-async" in request.header(b"prefer"):
        await _respond_async(ports, request, run)
        return
    await run_for(request, ports.dispatcher, run)
    request.execution_id = run.execution_id
    if run.outcome is not Outcome.SUCCEEDED:
        raise RunEnded(run)
    await request.answer(200, run.result, server_timing(run))


async def _respond_async(ports: Ports, request: Request, run: Run) -> None:
    ports.dispatcher.admission.usage.check(run.project_id)
    await ports.queue_room.need(run.project_id, 1)
    commit = Commit()
    as_declared(run)
    enqueue(commit, run, ports.backlog.owner)
    body = _encode({"execution_id": run.execution_id, "status": "queued"})
    location = (b"location", f"/v1/executions/{run.execution_id}".encode())
    request.execution_id = run.execution_id
    request.answer_with(commit, 202, body, [location])
    await ports.journal.commit(commit)
    ports.backlog.submit((run,))
    await request.answer(202, body, [location])


async def serve_http(ports: Ports, request: Request, project: str, name: str, _rest: str) -> None:
    """Serve `/f/{project}/{name}/...`: whoever knows the address may ask."""
    project_id = ports.catalogue.project(project)
    function = None if project_id is None else ports.catalogue.function(project_id, name)
    if function is None:
        raise NotFound("function", f"{project}/{name}")
    execution_id = new_id("exe")
    version = function.choose(execution_id)
    if "fetch" not in version.handlers:
        raise NotFound("fetch handler in function", name)
    body = await request.body(PARAMS_BYTES_MAX, "request_bytes")
    given, above = request.as_fetch_input(body), request.above_call()
    run = new_run(execution_id, version, "fetch", "http", given, ports.clock(), above=above)
    request.execution_id = execution_id
    try:
        await run_to_end(ports.dispatcher, run)
    except BreakerOpen as error:
        raise HeldBack(error) from None
    except QuotaExceeded as error:
        raise NoRoom(error) from None
    if run.outcome is not Outcome.SUCCEEDED:
        raise RunEnded(run, public=True)
    status, headers, data = _fetch_answer(run)
    await request.answer(status, data, [*headers, *server_timing(run)], json=False)


def new_run(
    execution_id: str,
    version: Version,
    handler: str,
    cause: str,
    body: bytes,
    now_ms: int,
    device: Device | None = None,
    above: Above | None = None,
) -> Run:
    run = Run(
        execution_id=execution_id,
        version=version,
        handler=handler,
        cause=cause,
        limits=version.limits(handler),
        input=body,
        created_ms=now_ms,
        created_ns=time.monotonic_ns(),
        root_id=execution_id,
        device=device,
    )
    if above is not None:
        run.beneath(above)
    return run


async def run_for(request: Request, dispatcher: Dispatcher, run: Run) -> None:
    """Run to the end; what the run changes is stored with the answer, if the request has a key.

    Raises:
        Draining: as `run_to_end`.
    """
    if request.claim is not None:

        def on_commit(run: Run, commit: Commit) -> None:
            request.execution_id = run.execution_id
            request.answer_with(commit, 200, run.result, server_timing(run))

        run.on_commit = on_commit
    await run_to_end(dispatcher, run)
    request.work_done = not run.unstored


async def run_to_end(dispatcher: Dispatcher, run: Run) -> None:
    """Submit the run, and return when it has ended, however it did.

    Raises:
        Draining: the engine stops, and the run was cancelled.
        EngineError: it was refused, and has not begun: see `Run.refused`.
    """
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_end(_run: Run) -> None:
        if not ended.done():
            ended.set_result(None)

    run.on_end = on_end
    dispatcher.submit(run)
    await ended
    if run.refused is not None:
        raise run.refused
    if run.outcome is Outcome.CANCELLED:
        raise Draining("the engine stopped before the run had ended; try again in a moment")


def find_function(catalogue: Catalogue, project_id: str, name: str) -> Function:
    """Return the project's function with this name or id.

    Raises:
        NotFound: there is none.
    """
    function = catalogue.function(project_id, name)
    if function is None:
        function = catalogue.function_by_id(name)
        if function is None or function.project_id != project_id:
            raise NotFound("function", unquote(name))
    return function


def server_timing(run: Run) -> list[tuple[bytes, bytes]]:
    text = b"queue;dur=%.3f, run;dur=%.3f, cpu;dur=%.3f" % (
        run.queue_ns / 1e6, run.wall_ns / 1e6, run.cpu_ns / 1e6,
    )  # fmt: skip
    return [(b"server-timing", text)]


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
