"""Lists, streams and documents of the API: paging, the live tail, metrics, health, OpenAPI."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from engine.api.problems import KINDS
from engine.errors import EngineError
from engine.ids import new_id
from engine.store.journal import Commit
from engine.store.run_queue import queue_row
from engine.store.tables import run_queue
from tests.standins.control_plane import (  # noqa: F401 - fixtures
    ECHO,
    Project,
    http,
    platform,
    project,
    shared,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_paging_has_no_gap_and_no_double_while_rows_are_added(project: Project) -> None:
    """What is added meanwhile stands before the first page."""
    first = [await _product(project, n) for n in range(7)]
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    while True:
        page = await project.operate.ok("GET", "/v1/products", params=query)
        seen += [one["id"] for one in page["items"]]
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
        await _product(project, 100 + len(seen))

    assert seen == first[::-1]


async def test_a_page_that_ends_with_the_list_has_no_next(project: Project) -> None:
    """Also when it is exactly full; an empty list is a page too."""
    made = [await _product(project, n) for n in range(2)]

    page = await project.operate.ok("GET", "/v1/products", params={"limit": 2})
    empty = await project.operate.ok("GET", "/v1/devices")

    assert [one["id"] for one in page["items"]] == made[::-1]
    assert page["next_cursor"] is None
    assert empty == {"items": [], "next_cursor": None}


async def test_waiting_and_ended_runs_are_one_list(project: Project) -> None:
    """Newest first, without a gap or a double where one page ends among both."""
    function = await project.function("echo", ECHO)
    ids = []
    for n in range(6):
        if n % 2:
            response = await project.develop.call("POST", "/v1/functions/echo/invoke", n)
            ids.append(response.headers["execution-id"])
        else:
            ids.append(await _waiting_run(project, function["id"]))

    everything = await project.operate.items("/v1/executions", limit=2)
    queued = await project.operate.items("/v1/executions", status="queued", limit=2)
    running = await project.operate.items("/v1/executions", status="running")
    one = await project.operate.ok("GET", f"/v1/executions/{ids[0]}")
    log = await project.operate.ok("GET", f"/v1/executions/{ids[0]}/logs")

    assert [one["id"] for one in everything] == ids[::-1]
    assert [one["id"] for one in queued] == ids[::2][::-1]
    assert running == []
    assert (one["status"], one["version"], one["input"]) == ("queued", None, {"a": 1})
    assert log["items"] == []


async def test_deleting_a_function_cancels_what_waits_for_it(project: Project) -> None:
    """The runs stay in the list, ended as cancelled, with the reason."""
    function = await project.function("echo", ECHO)
    waiting = await _waiting_run(project, function["id"])

    await project.develop.ok("DELETE", "/v1/functions/echo")
    run = await project.operate.ok("GET", f"/v1/executions/{waiting}")

    assert run["status"] == "cancelled"
    assert run["error"]["message"] == "the function was deleted"
    assert (run["root_id"], run["depth"], run["effects"]) == (waiting, 0, [])
    assert await project.operate.items("/v1/executions", status="queued") == []
    listed = await project.operate.items("/v1/executions", function="echo")
    assert [one["id"] for one in listed] == [waiting]


async def test_all_values_of_equal_times_are_paged_once(project: Project) -> None:
    """The hard case of a merged list: every value has the same time."""
    device = await project.device()
    path = f"/v1/devices/{device['id']}/values"
    at = "2010-10-29T00:00:00Z"
    rows = [{"key": f"k{n % 4}", "value": n, "datetime": at} for n in range(20)]
    await project.ingest.ok("POST", path, {"values": rows})

    for limit in (1, 3, 7):
        found = await project.operate.items(path, limit=limit)
        assert [one["value"] for one in found] == list(range(19, -1, -1))


async def test_the_tail_shows_lines_and_reports(project: Project) -> None:
    """Server-sent events, from the moment that the stream is on."""
    await project.function("talks", "export function job() { console.log('hello'); }")
    events: list[tuple[str, Any]] = []
    async for kind, data in _tail(project, "/v1/functions/talks/tail"):
        if kind == "on":
            await project.develop.ok("POST", "/v1/functions/talks/invoke")
            continue
        events.append((kind, data))
        if kind == "report":
            break

    assert [kind for kind, _ in events] == ["log", "report"]
    assert events[0][1]["msg"] == "hello"
    assert events[0][1]["execution_id"] == events[1][1]["id"]
    assert events[1][1]["status"] == "succeeded"


async def test_metrics_speak_prometheus(shared: Project) -> None:
    """Runs are counted by function and status; no key is needed."""
    await shared.develop.ok("POST", "/v1/functions/echo/invoke", 1)

    response = await shared.admin.http.get("/metrics")

    assert response.headers["content-type"].startswith("text/plain")
    pattern = r'cloudcode_executions_total\{function="echo",status="succeeded",trigger="invoke"\} '
    assert re.search(pattern, response.text)
    assert 'cloudcode_queue_wait_seconds_bucket{function="echo",le="+Inf"' in response.text
    assert 'cloudcode_held{kind="runs"}' in response.text


async def test_health_and_limits_need_no_key(shared: Project) -> None:
    """Orchestrators and authors ask before they have one."""
    caller = shared.admin.http

    health = (await caller.get("/healthz")).json()
    ready = (await caller.get("/readyz")).json()
    limits = (await caller.get("/v1/limits")).json()

    assert health == {"status": "ok"}
    assert ready["status"] == "ok"
    assert set(ready["checks"]) == {
        "database", "commits", "schema", "sandbox", "disk", "clock", "release", "draining",
    }  # fmt: skip
    assert limits["handlers"]["trigger"]["wall_ms"] == {"default": 2000, "max": 60_000}
    assert limits["handlers"]["beforeStore"]["network_requests"] == 0
    assert limits["sizes"]["event_bytes"] == 256 * 1024


async def test_the_document_is_whole(shared: Project) -> None:
    """Ids are unique, references lead somewhere, parameters are declared, bodies have examples."""
    document = (await shared.admin.http.get("/openapi.json")).json()
    operations = list(_operations(document))
    schemas = document["components"]["schemas"]

    ids = [operation["operationId"] for _, _, operation in operations]
    assert len(ids) == len(set(ids))
    assert document["openapi"].startswith("3.1")
    for reference in set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document))):
        place = document
        for part in reference.split("/"):
            place = place[part]
    for path, method, operation in operations:
        declared = {p["name"] for p in operation.get("parameters", []) if p.get("in") == "path"}
        assert declared == set(re.findall(r"{(\w+)}", path)), (method, path)
        assert operation["tags"], (method, path)
        assert operation["summary"], (method, path)
        for content in operation.get("requestBody", {}).get("content", {}).values():
            schema = content["schema"]
            schema = schemas[schema["$ref"].split("/")[-1]] if "$ref" in schema else schema
            assert content.get("example") is not None or schema["examples"], (method, path)


async def test_the_document_lists_each_routes_errors(shared: Project) -> None:
    """Every /v1 route that wants a key tells its refusals; those with a body, a wrong body's."""
    document = (await shared.admin.http.get("/openapi.json")).json()

    for path, method, operation in _operations(document):
        responses = operation["responses"]
        assert "500" in responses, (method, path)
        if operation.get("security"):
            assert {"401", "403", "404", "503"} <= responses.keys(), (method, path)
            if "requestBody" in operation:
                assert {"400", "413", "422"} <= responses.keys(), (method, path)
        for status, response in responses.items():
            if status[0] in "45" and not path.startswith("/v2") and path != "/readyz":
                assert "application/problem+json" in response["content"], (method, path, status)
    assert {"/v1/writes", "/v2/things/{token}", "/f/{project}/{function}/{path}"} <= set(
        document["paths"]
    )


async def test_every_error_class_has_a_status() -> None:
    """A code that the table does not know would be answered as a fault of ours."""
    inside = {"engine_error", "seal_broken", "master_key_unusable"}  # never a caller's
    inside |= {"egress_refused", "egress_failed", "causal_budget_exceeded"}  # a guest sees these
    inside |= {"schema_too_new", "store_taken"}  # whoever starts it
    inside |= {"lease_lost"}  # a run goes on elsewhere

    def below(kind: type[EngineError]) -> Iterator[type[EngineError]]:
        yield kind
        for child in kind.__subclasses__():
            yield from below(child)

    assert {kind.code for kind in below(EngineError)} - inside <= KINDS.keys()


async def _product(project: Project, number: int) -> str:
    body = {"name": f"product {number}"}
    made: dict[str, str] = await project.operate.ok("POST", "/v1/products", body)
    return made["id"]


async def _waiting_run(project: Project, function_id: str) -> str:
    """Queue a run that nothing takes up: its time is an hour away."""
    execution_id, now_ms = new_id("exe"), project.platform.clock()
    commit = Commit()
    row = queue_row(
        run_id=execution_id,
        project_id=project.id,
        function_id=function_id,
        cause="invoke",
        handler="job",
        root_id=execution_id,
        created_ms=now_ms,
        given='{"a":1}',
        due_ms=now_ms + 3_600_000,
    )
    commit.insert(run_queue, row)
    await project.platform.journal.commit(commit)
    return execution_id


async def _tail(project: Project, path: str) -> Any:
    """Yield (kind, data) of a stream; httpx' ASGI transport would wait for its end."""
    sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    gone = asyncio.Event()
    asked = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        if asked:
            return asked.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET",
        "path": path, "raw_path": path.encode(), "query_string": b"", "scheme": "http",
        "headers": [(b"authorization", f"Bearer {project.develop.key}".encode())],
        "server": ("engine", 80), "client": ("test", 1), "root_path": "",
    }  # fmt: skip
    serving = asyncio.create_task(project.platform.asgi()(scope, receive, sent.put))
    async with asyncio.timeout(10):
        assert (await sent.get())["status"] == 200
        while True:
            text = (await sent.get())["body"].decode()
            if text.startswith(":"):
                yield "on", None
            elif match := re.fullmatch(r"event: (\w+)\ndata: (.*)\n\n", text):
                yield match[1], msgspec.json.decode(match[2])
                if match[1] == "report":
                    gone.set()
                    await serving


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield path, method, operation
