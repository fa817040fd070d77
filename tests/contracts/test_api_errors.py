"""What the control plane refuses: every wrong body, key and id is told what is wrong, and where."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from engine.allowances import defaults
from engine.catalogue import Catalogue
from engine.clock import Clock, wall_clock
from engine.errors import Conflict
from engine.projects import create_api_key, create_project, revoke_api_key
from engine.quotas import BODY_BYTES_MAX, BUNDLE_BYTES_MAX
from engine.settings import Settings
from engine.store.database import Database
from engine.store.journal import Journal
from engine.vault import Vault
from tests.standins.control_plane import (  # noqa: F401 - fixtures
    ECHO,
    ON_WRITE,
    SCOPES,
    Project,
    http,
    neighbour,
    platform,
    project,
    shared,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

WRONG_FUNCTIONS = {
    "unknown field": ({"soruce": ECHO}, 422, "/soruce"),
    "no code": ({}, 422, "/source"),
    "source and files": ({"source": ECHO, "files": {"a.js": ECHO}}, 422, "/source"),
    "no files": ({"files": {}}, 422, "/files"),
    "too many files": ({"files": {f"{n}.js": "1" for n in range(101)}}, 422, "/files"),
    "no such main": ({"files": {"a.js": ECHO}, "main": "b.js"}, 422, "/main"),
    "which main": ({"files": {"a.js": ECHO, "b.js": "1"}}, 422, "/main"),
    "a file outside": ({"files": {"../a.js": ECHO}}, 422, "/files"),
    "source of a number": ({"source": 1}, 422, "/source"),
    "name of a number": ({"name": 1, "source": ECHO}, 422, "/name"),
    "bad name": ({"name": "1 alarm", "source": ECHO}, 422, "/name"),
    "long name": ({"name": "a" * 65, "source": ECHO}, 422, "/name"),
    "empty name": ({"name": "", "source": ECHO}, 422, "/name"),
    "name of another script": ({"name": "tür", "source": ECHO}, 422, "/name"),
    "another runtime": ({"runtime": "python", "source": ECHO}, 422, "/runtime"),
    "a runtime of a number": ({"runtime": 1, "source": ECHO}, 422, "/runtime"),
    "source as wasm": ({"runtime": "wasm", "source": ECHO}, 422, "/source"),
    "wasm and source": ({"wasm": "AGFzbQEAAAA=", "source": ECHO}, 422, "/source"),
    "wasm and main": ({"wasm": "AGFzbQEAAAA=", "main": "a.js"}, 422, "/main"),
    "wasm without wasm": ({"runtime": "wasm"}, 422, "/wasm"),
    "wasm as javascript": ({"runtime": "javascript", "wasm": "AGFzbQEAAAA="}, 422, "/wasm"),
    "javascript with handlers": ({"source": ECHO, "handlers": ["job"]}, 422, "/handlers"),
    "javascript with args": ({"source": ECHO, "args": []}, 422, "/args"),
    "javascript with io": ({"source": ECHO, "io": "text"}, 422, "/io"),
    "javascript with exports": ({"source": ECHO, "exports": {}}, 422, "/exports"),
    "javascript with reuse": ({"source": ECHO, "reuse": False}, 422, "/reuse"),
    "javascript with fuel": ({"source": ECHO, "limits": {"fuel": 1}}, 422, "/limits/fuel"),
    "no handler": ({"source": "let a = 1"}, 422, "/source"),
    "empty source": ({"source": ""}, 422, "/source"),
    "limits of text": ({"source": ECHO, "limits": {"cpu_ms": "1"}}, 422, "/limits/cpu_ms"),
    "unknown limit": ({"source": ECHO, "limits": {"disk": 1}}, 422, "/limits/disk"),
    "no CPU": ({"source": ECHO, "limits": {"cpu_ms": 0}}, 422, "/limits/cpu_ms"),
    "too much CPU": ({"source": ECHO, "limits": {"cpu_ms": 30_001}}, 422, "/limits/cpu_ms"),
    "CPU for a trigger": ({"source": ON_WRITE, "limits": {"cpu_ms": 2_001}}, 422, "/limits/cpu_ms"),
    "too much memory": ({"source": ECHO, "limits": {"memory_mb": 513}}, 422, "/limits/memory_mb"),
    "CPU over wall": ({"source": ECHO, "limits": {"cpu_ms": 9, "wall_ms": 8}}, 422,
                      "/limits/cpu_ms"),
    "a URL as host": ({"source": ECHO, "allowed_hosts": ["http://a.b/"]}, 422, "/allowed_hosts/0"),
    "a port too high": ({"source": ECHO, "allowed_hosts": ["a", "a:65536"]}, 422,
                        "/allowed_hosts/1"),
    "variable in lower case": ({"source": ECHO, "variables": {"a": "1"}}, 422, "/variables"),
    "variable of a number": ({"source": ECHO, "variables": {"A": 1}}, 422, "/variables/A"),
    "variable too long": ({"source": ECHO, "variables": {"A": "é" * 2561}}, 422, "/variables/A"),
    "no such secret": ({"source": ECHO, "secrets": ["NOPE"]}, 422, "/secrets/0"),
    "secret and variable": ({"source": ECHO, "secrets": ["A"], "variables": {"A": ""}}, 422,
                            "/secrets/0"),
    "long message": ({"source": ECHO, "message": "a" * 1001}, 422, "/message"),
    "a bell in the message": ({"source": ECHO, "message": "\a"}, 422, "/message"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_FUNCTIONS)
async def test_a_wrong_function_is_refused_with_its_field(shared: Project, case: str) -> None:
    """Nothing of it is stored."""
    body, status, pointer = WRONG_FUNCTIONS[case]

    problem = await shared.develop.refused(
        status, "POST", "/v1/functions", {"name": "alarm", **body}
    )

    assert problem["errors"][0]["pointer"] == pointer, problem
    assert len(await shared.develop.items("/v1/functions")) == 1


async def test_code_that_does_not_compile_names_its_line(project: Project) -> None:
    """File, line and column are the author's."""
    body = {"name": "a", "source": "let x = 1;\nlet y = ;\n"}

    problem = await project.develop.refused(422, "POST", "/v1/functions", body)

    assert problem["code"] == "compile_error"
    assert (problem["file"], problem["line"]) == ("main.js", 2)
    assert problem["errors"][0]["pointer"] == "/source"
    assert await project.develop.items("/v1/functions") == []


async def test_a_module_that_exports_only_main_is_told_what_a_module_exports(
    shared: Project,
) -> None:
    """`main` is a handler of classic scripts; the list of handlers alone would mislead."""
    body = {"name": "only-main", "source": "export async function main() { return 1 }"}

    problem = await shared.develop.refused(422, "POST", "/v1/functions", body)

    assert "in a module write `export default async function`" in problem["detail"]


async def test_code_that_does_not_compile_names_its_file(shared: Project) -> None:
    """Of several files it is the wrong one."""
    files = {"name": "a", "files": {"main.js": "import './b/c.js'", "b/c.js": "\nlet y = ;"}}

    problem = await shared.develop.refused(422, "POST", "/v1/functions", files)

    assert (problem["file"], problem["line"]) == ("b/c.js", 2)
    assert problem["errors"][0]["pointer"] == "/files/b~1c.js"


async def test_a_bundle_that_is_too_large_is_refused(project: Project) -> None:
    """Bytes count, not characters; the limit is named."""
    body = {"name": "a", "source": "//" + "é" * (BUNDLE_BYTES_MAX // 2)}

    problem = await project.develop.refused(413, "POST", "/v1/functions", body)

    used = BUNDLE_BYTES_MAX + 2
    assert problem["limit"] == {"name": "bundle_bytes", "value": BUNDLE_BYTES_MAX, "used": used}


WRONG = {
    "product": ("operate", "/v1/products", {"name": ""}, "/name"),
    "product of spaces": ("operate", "/v1/products", {"name": " a"}, "/name"),
    "product of lines": ("operate", "/v1/products", {"name": "a\nb"}, "/name"),
    "long product": ("operate", "/v1/products", {"name": "é" * 129}, "/name"),
    "a list": ("operate", "/v1/products", [], ""),
    "null": ("operate", "/v1/products", {"name": None}, "/name"),
    "device": ("operate", "/v1/devices", {"product": "none", "name": "a"}, "/product"),
    "zone": ("operate", "/v1/devices", {"product": "thermometer", "name": "a",
                                        "timezone": "Mars/Dune"}, "/timezone"),
    "a zone of the machine's": ("operate", "/v1/devices", {"product": "thing", "name": "a",
                                                           "timezone": "right/UTC"}, "/timezone"),
    "zone outside": ("operate", "/v1/devices", {"product": "thermometer", "name": "a",
                                                "timezone": "../../etc/passwd"}, "/timezone"),
    "tag": ("operate", "/v1/devices", {"product": "thermometer", "name": "a", "tags": [""]},
            "/tags/0"),
    "trigger on read": ("develop", "/v1/triggers", {"function": "echo", "product": "thermometer",
                                                    "on": "read"}, "/on"),
    "trigger before": ("develop", "/v1/triggers", {"function": "echo", "product": "thermometer",
                                                   "phase": "before"}, "/phase"),
    "no function": ("develop", "/v1/triggers", {"function": "x", "product": "thermometer"},
                    "/function"),
    "no product": ("develop", "/v1/triggers", {"function": "echo", "product": "x"}, "/product"),
    "no handler": ("develop", "/v1/triggers", {"function": "echo", "product": "thermometer"},
                   "/function"),
    "no versions": ("develop", "/v1/functions/echo/deployments", {"versions": []}, "/versions"),
    "not all": ("develop", "/v1/functions/echo/deployments",
                {"versions": [{"version": 1, "percent": 99}]}, "/versions"),
    "no version": ("develop", "/v1/functions/echo/deployments",
                   {"versions": [{"version": 2, "percent": 100}]}, "/versions/0/version"),
    "twice": ("develop", "/v1/functions/echo/deployments",
              {"versions": [{"version": 1, "percent": 50}] * 2}, "/versions"),
    "three": ("develop", "/v1/functions/echo/deployments",
              {"versions": [{"version": 1, "percent": 50}] * 3}, "/versions"),
    "minus": ("develop", "/v1/functions/echo/deployments",
              {"versions": [{"version": 1, "percent": -1}, {"version": 2, "percent": 101}]},
              "/versions/0/percent"),
    "scope": ("admin", "/v1/api-keys", {"name": "a", "scopes": ["root"]}, "/scopes/0"),
    "no scope": ("admin", "/v1/api-keys", {"name": "a", "scopes": []}, "/scopes"),
    "double scope": ("admin", "/v1/api-keys", {"name": "a", "scopes": ["admin", "admin"]},
                     "/scopes/1"),
    "project": ("admin", "/v1/api-keys", {"name": "a", "scopes": ["admin"], "project": "none"},
                "/project"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
async def test_a_wrong_body_is_refused_with_its_field(shared: Project, case: str) -> None:
    """422 names the field by a JSON pointer."""
    scope, path, body, pointer = WRONG[case]

    problem = await getattr(shared, scope).refused(422, "POST", path, body)

    assert problem["code"] == "validation_failed"
    assert problem["errors"][0]["pointer"] == pointer, problem


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=201", "limit=x", "cursor=x", "cursor=' OR 1", "status=done", "since=now"],
)
async def test_a_wrong_query_is_refused(shared: Project, query: str) -> None:
    """422, and the pointer names the part of the query."""
    problem = await shared.operate.refused(422, "GET", f"/v1/executions?{query}")

    assert problem["errors"][0]["pointer"] == "?" + query.partition("=")[0]


@pytest.mark.parametrize(
    ("method", "path", "known"),
    [
        ("DELETE", "/v1/dead-letters?all=true&wrong=1", "all, breaker, cause, dry_run"),
        ("DELETE", "/v1/functions/none?wrong=1", "there are none here"),
        ("POST", "/v1/schedules/none/trigger?wrong=1", "known are device, force"),
        ("POST", "/v1/admin/tickets/reissue?wrong", "there are none here"),
        ("PUT", "/v1/secrets/NONE?wrong=1", "known are force"),
        ("PATCH", "/v1/schedules/none?wrong=1", "there are none here"),
    ],
)
async def test_a_change_with_an_unknown_parameter_is_refused(
    shared: Project, method: str, path: str, known: str
) -> None:
    """A mistyped dry run would act for real; who only reads is not held up."""
    body = {"PUT": {"value": "x"}, "PATCH": {}}.get(method)

    problem = await shared.admin.refused(422, method, path, body)

    assert (problem["code"], problem["errors"][0]["pointer"]) == ("validation_failed", "?wrong")
    assert known in problem["errors"][0]["message"]
    await shared.admin.ok("GET", "/v1/functions?wrong=1")


@pytest.mark.parametrize(
    "body",
    [
        b'{"name": "a",}', b"{'name': 1}", b"[" * 100_000, b'{"name": NaN}', b'{"name": "\\ud800"}',
        b"\xff\xfe", b"1" * 5000, b'{"name": "a"} x', b'{"name": "',
    ],
    ids=["comma", "quotes", "deep", "NaN", "half a character", "bytes", "number", "more", "cut"],
)  # fmt: skip
async def test_malformed_json_is_told_where(shared: Project, body: bytes) -> None:
    """400, with the place where it stops being JSON."""
    problem = await shared.operate.refused(400, "POST", "/v1/products", content=body)

    assert problem["code"] == "malformed_json"
    assert problem["detail"]


async def test_curl_without_a_content_type_is_understood(project: Project) -> None:
    """`curl -d` says that its JSON is a form."""
    headers = {"content-type": "application/x-www-form-urlencoded"}

    made = await project.operate.ok(
        "POST", "/v1/products", content=b'{"name": "a"}', headers=headers
    )

    assert made["name"] == "a"


async def test_a_body_that_is_too_large_is_not_read(project: Project) -> None:
    """413 comes with the first byte too many, announced or not."""
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield b" " * (BODY_BYTES_MAX // 4)

    streamed = await project.operate.refused(413, "POST", "/v1/products", content=chunks())
    announced = await project.operate.refused(
        413, "POST", "/v1/products", content=b"", headers={"content-length": "99999999"}
    )

    assert streamed["limit"]["name"] == announced["limit"]["name"] == "request_bytes"
    assert announced["limit"]["used"] == 99_999_999
    assert sent <= 6


@pytest.mark.parametrize("key", ["", "Bearer", "Bearer nope", "Basic abc", f"Bearer {'a' * 600}"])
async def test_without_a_key_nothing_opens(shared: Project, key: str) -> None:
    """401, whatever is wrong with the key, and how one is sent."""
    response = await shared.admin.http.get("/v1/products", headers={"Authorization": key})

    assert response.status_code == 401
    assert response.json()["code"] == "unauthorized"
    assert response.headers["www-authenticate"].startswith("Bearer")


DEVELOP, OPERATE, READ = {"develop"}, {"operate"}, {"develop", "operate"}
SCOPED = {
    ("POST", "/v1/projects"): set(), ("GET", "/v1/projects"): set(),
    ("GET", "/v1/projects/current"): READ, ("PATCH", "/v1/projects/current"): set(),
    ("POST", "/v1/api-keys"): set(), ("GET", "/v1/api-keys"): set(),
    ("PATCH", "/v1/api-keys/x"): set(), ("DELETE", "/v1/api-keys/x"): set(),
    ("POST", "/v1/products"): OPERATE, ("GET", "/v1/products"): READ,
    ("GET", "/v1/products/x"): READ, ("POST", "/v1/devices"): OPERATE,
    ("GET", "/v1/devices"): READ, ("GET", "/v1/devices/x"): READ,
    ("DELETE", "/v1/devices/x"): OPERATE, ("GET", "/v1/devices/x/values"): READ,
    ("GET", "/v1/devices/x/resources"): READ, ("POST", "/v1/functions"): DEVELOP,
    ("GET", "/v1/functions"): READ, ("GET", "/v1/functions/x"): READ,
    ("DELETE", "/v1/functions/x"): DEVELOP, ("POST", "/v1/functions/x/versions"): DEVELOP,
    ("GET", "/v1/functions/x/versions"): READ, ("GET", "/v1/functions/x/versions/1"): READ,
    ("GET", "/v1/functions/x/versions/1/wasm"): READ,
    ("POST", "/v1/functions/x/deployments"): DEVELOP,
    ("GET", "/v1/functions/x/deployments"): READ, ("POST", "/v1/functions/x/rollback"): DEVELOP,
    ("GET", "/v1/functions/x/tail"): READ, ("POST", "/v1/triggers"): DEVELOP,
    ("GET", "/v1/triggers"): READ, ("DELETE", "/v1/triggers/x"): DEVELOP,
    ("POST", "/v1/schedules"): DEVELOP, ("GET", "/v1/schedules"): READ,
    ("GET", "/v1/schedules/x"): READ, ("PATCH", "/v1/schedules/x"): DEVELOP,
    ("DELETE", "/v1/schedules/x"): DEVELOP, ("POST", "/v1/schedules/x/pause"): READ,
    ("POST", "/v1/schedules/x/resume"): READ, ("POST", "/v1/schedules/x/trigger"): READ,
    ("POST", "/v1/schedules/x/backfill"): READ, ("GET", "/v1/schedules/x/preview"): READ,
    ("POST", "/v1/schedules/preview"): READ,
    ("GET", "/v1/executions"): READ, ("GET", "/v1/executions/x"): READ,
    ("GET", "/v1/executions/x/logs"): READ, ("GET", "/v1/events"): READ,
    ("GET", "/v1/events/x"): READ, ("GET", "/v1/events/x/explain"): READ,
    ("PUT", "/v1/secrets/X"): DEVELOP,
    ("GET", "/v1/secrets"): READ, ("DELETE", "/v1/secrets/X"): DEVELOP,
    ("PUT", "/v1/connections/X"): DEVELOP, ("GET", "/v1/connections"): READ,
    ("DELETE", "/v1/connections/X"): DEVELOP, ("GET", "/v1/deliveries"): READ,
    ("GET", "/v1/connections/X"): READ, ("POST", "/v1/connections/X/test"): READ,
    ("POST", "/v1/connections/X/enable"): READ, ("GET", "/v1/connectors"): READ,
    ("GET", "/v1/connectors/x"): READ,
    ("GET", "/v1/deliveries/x"): READ, ("POST", "/v1/deliveries/x/resend"): OPERATE,
    ("POST", "/v1/deliveries/x/cancel"): OPERATE, ("POST", "/v1/deliveries/x/hold"): OPERATE,
    ("POST", "/v1/deliveries/x/release"): OPERATE, ("POST", "/v1/deliveries:bulk"): OPERATE,
    ("GET", "/v1/kv/x"): READ, ("GET", "/v1/kv/x/y"): READ,
    ("PUT", "/v1/kv/x/y"): OPERATE, ("DELETE", "/v1/kv/x/y"): OPERATE,
    ("GET", "/v1/jobs"): READ, ("GET", "/v1/jobs/x"): READ, ("DELETE", "/v1/jobs/x"): READ,
    ("POST", "/v1/executions/x/cancel"): READ, ("POST", "/v1/executions/x/replay"): READ,
    ("POST", "/v1/executions:bulk"): READ, ("GET", "/v1/dead-letters"): READ,
    ("GET", "/v1/dead-letters/x"): READ, ("PATCH", "/v1/dead-letters/x"): READ,
    ("DELETE", "/v1/dead-letters"): READ, ("DELETE", "/v1/dead-letters/x"): READ,
    ("POST", "/v1/dead-letters/x/redrive"): READ, ("POST", "/v1/dead-letters:redrive"): READ,
    ("GET", "/v1/breakers"): READ, ("GET", "/v1/breakers/x"): READ,
    ("POST", "/v1/breakers/x/close"): READ, ("POST", "/v1/breakers/x/redrive"): READ,
    ("GET", "/v1/usage"): READ,
    ("GET", "/v1/projects/current/retention"): READ,
    ("PUT", "/v1/projects/current/retention"): OPERATE,
    ("GET", "/v1/admin/nodes"): set(), ("GET", "/v1/admin/queues"): set(),
    ("GET", "/v1/admin/stuck"): set(), ("POST", "/v1/admin/release"): set(),
    ("POST", "/v1/admin/tickets/reissue"): set(),
    ("POST", "/v1/admin/master-key/rotate"): set(),
}  # fmt: skip


async def test_each_scope_opens_what_it_should_and_nothing_else(shared: Project) -> None:
    """403 names what is needed and held; a key that may gets past it, to the body or the id."""
    for ((method, path), allowed), scope in itertools.product(SCOPED.items(), SCOPES):
        body = {} if method in {"POST", "PUT"} else None
        response = await getattr(shared, scope).call(method, path, body)

        may = scope == "admin" or scope in allowed
        assert (response.status_code != 403) == may, (method, path, scope, response.text)
        if not may:
            assert response.json()["code"] == "forbidden_scope"
            assert scope in response.json()["detail"]


async def test_every_route_stands_in_the_matrix_of_scopes(shared: Project) -> None:
    """A route that is added without a decision about its scope fails here."""
    document = (await shared.admin.http.get("/openapi.json")).json()
    asked = {
        (method.upper(), path)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if operation.get("security")
    }
    hot = {("POST", "/v1/writes"), ("POST", "/v1/devices/{device_id}/values"),
           ("POST", "/v1/functions/{name}/invoke"), ("POST", "/v1/jobs")}  # fmt: skip

    assert len(asked - hot) == len(SCOPED)


async def test_what_a_function_may_call_says_how_loops_end(shared: Project) -> None:
    """508 and 429 stand in the description of each route that a function's request can reach."""
    paths = (await shared.admin.http.get("/openapi.json")).json()["paths"]

    for path in (
        "/f/{project}/{function}/{path}", "/v1/jobs", "/v1/writes", "/v2/things/{token}",
        "/v1/devices/{device_id}/values", "/v1/functions/{name}/invoke",
        "/v2/things/{token}/code/functions/{name}",
    ):  # fmt: skip
        assert {"429", "508"} <= paths[path]["post"]["responses"].keys(), path


async def test_what_belongs_to_another_project_is_not_there(
    project: Project, neighbour: Project
) -> None:
    """Ids and names of another project are answered like those that never were."""
    function = await neighbour.function("alarm", ON_WRITE)
    device = await neighbour.device()
    product = (await neighbour.operate.items("/v1/products"))[0]
    body = {"function": "alarm", "product": "thermometer"}
    trigger = await neighbour.develop.ok("POST", "/v1/triggers", body)
    write = f"/v1/devices/{device['id']}/values"
    values = {"values": [{"key": "t", "value": 1}]}
    written = await neighbour.ingest.ok("POST", write, values)
    execution, event = written["executions"][0], written["event_id"]

    for path in (
        f"/v1/functions/{function['id']}", "/v1/functions/alarm", "/v1/functions/alarm/versions",
        "/v1/functions/alarm/versions/1", "/v1/functions/alarm/deployments",
        "/v1/functions/alarm/tail", f"/v1/devices/{device['id']}", write,
        f"/v1/devices/{device['id']}/resources", f"/v1/products/{product['id']}",
        f"/v1/products/{product['name']}", f"/v1/executions/{execution}",
        f"/v1/executions/{execution}/logs", "/v1/devices?product=thermometer",
        "/v1/triggers?function=alarm", f"/v1/events/{event}", f"/v1/events/{event}/explain",
    ):  # fmt: skip
        await project.operate.refused(404, "GET", path)
    for scope, path in (
        ("develop", f"/v1/functions/{function['id']}"), ("operate", f"/v1/devices/{device['id']}"),
        ("develop", f"/v1/triggers/{trigger['id']}"), ("develop", "/v1/secrets/X"),
    ):  # fmt: skip
        await getattr(project, scope).refused(404, "DELETE", path)
    assert (await project.ingest.call("POST", write, values)).status_code == 404
    assert (await project.operate.items("/v1/executions")) == []
    assert len(await neighbour.operate.items("/v1/functions")) == 1


async def test_problems_of_the_raw_routes_carry_their_request_id(shared: Project) -> None:
    """The id in the body is the header's."""
    await shared.ingest.refused(404, "POST", "/v1/devices/x/values", {"values": []})


@pytest.mark.parametrize(
    ("scope", "path", "body"),
    [
        ("operate", "/v1/products", {"name": "same"}),
        ("develop", "/v1/functions", {"name": "same", "source": ECHO}),
        ("admin", "/v1/projects", {"name": "same project"}),
    ],
)
async def test_of_many_who_want_one_name_one_gets_it(
    project: Project, scope: str, path: str, body: dict[str, Any]
) -> None:
    """The others are told 409."""
    caller = getattr(project, scope)

    answers = await asyncio.gather(*(caller.call("POST", path, body) for _ in range(5)))

    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409, 409]
    loser = next(answer.json() for answer in answers if answer.status_code == 409)
    assert loser["code"] == "conflict"
    assert "same" in loser["detail"]


async def test_versions_made_at_the_same_time_all_count(project: Project) -> None:
    """Each gets a number of its own."""
    await project.function("alarm", ECHO)
    upload = {"source": ECHO}

    made = await asyncio.gather(
        *(project.develop.ok("POST", "/v1/functions/alarm/versions", upload) for _ in range(4))
    )

    assert sorted(one["version"] for one in made) == [2, 3, 4, 5]


async def test_a_version_that_a_trigger_cannot_use_does_not_go_live(project: Project) -> None:
    """Else every write would fail from then on."""
    await project.function("alarm", ON_WRITE)
    await project.device()
    body = {"function": "alarm", "product": "thermometer"}
    trigger = await project.develop.ok("POST", "/v1/triggers", body)

    path = "/v1/functions/alarm/versions?deploy=true"
    problem = await project.develop.refused(422, "POST", path, {"source": ECHO})

    assert trigger["id"] in problem["detail"]
    assert len(await project.develop.items("/v1/functions/alarm/versions")) == 1


async def test_the_last_admin_key_stays(tmp_path: Path) -> None:
    """Nobody could make another one."""
    database = Database(f"sqlite:///{tmp_path / 'engine.db'}")
    database.migrate()
    journal = Journal(database)
    control = _Control(
        database, journal, Catalogue(database, Vault(bytes(32)), wall_clock, defaults(Settings()))
    )
    made, _ = await create_project(control, "one")
    first, _ = await create_api_key(control, project=made.id, name="first", scopes=["admin"])
    second, _ = await create_api_key(control, project=made.id, name="second", scopes=["admin"])
    await revoke_api_key(control, first.id)

    with pytest.raises(Conflict, match="last admin key"):
        await revoke_api_key(control, second.id)

    assert control.catalogue.key(second.hash) is not None
    await journal.close()
    database.close()


async def test_names_may_be_of_any_script(project: Project) -> None:
    """They come back as they were sent."""
    for name in ("Größe", "温度", "صالون", "🌡️ thermo"):
        made = await project.operate.ok("POST", "/v1/products", {"name": name})
        assert made["name"] == name


async def test_unknown_routes_and_methods(project: Project) -> None:
    """404 and 405 are problems too; 405 and OPTIONS tell what is allowed; HEAD is GET."""
    missing = await project.admin.refused(404, "GET", "/v1/nothing")
    refused = await project.admin.call("PATCH", "/v1/products")
    options = await project.admin.http.options("/v1/products")
    head = await project.operate.call("HEAD", "/v1/products")

    assert missing["code"] == "not_found"
    assert refused.json()["code"] == "method_not_allowed"
    assert refused.headers["allow"] == options.headers["allow"] == "GET, HEAD, OPTIONS, POST"
    assert options.status_code == 204
    assert (head.status_code, head.content) == (200, b"")


async def test_a_fault_of_ours_shows_nothing_of_the_inside(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 has the request id, which leads to the log, and nothing else."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret inside")

    monkeypatch.setattr(type(project.platform), "running", broken)

    headers = {"X-Request-Id": "mine-1"}
    with capture_logs() as logs:
        problem = await project.operate.refused(500, "GET", "/v1/executions", headers=headers)

    assert [one["request_id"] for one in logs] == ["mine-1"]
    assert problem["code"] == "internal"
    assert problem["request_id"] == "mine-1"
    assert "secret" not in str(problem)
    assert "Zero" not in str(problem)


@dataclass
class _Control:
    database: Database
    journal: Journal
    catalogue: Catalogue
    clock: Clock = wall_clock
