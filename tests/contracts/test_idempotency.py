"""`Idempotency-Key` over HTTP: what is sent again is answered again, and done once."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import asyncio
import base64
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio
from sqlalchemy import Connection, insert, select, text

from engine.ids import new_id
from engine.store.tables import dead_letters, executions, idempotency_keys
from tests.standins.control_plane import (  # noqa: F401 - fixtures
    ECHO,
    ON_WRITE,
    Caller,
    Project,
    http,
    neighbour,
    platform,
    project,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "Idempotency-Key"
WRITER = """
export default { async job(params, env) { await env.DEVICES.write(params.device,
  [{ key: "n", value: params.n }]); return "written"; } }
"""
FAILS = "export default { job() { throw new Error('no') } }"


def keyed(key: str) -> dict[str, Any]:
    return {"headers": {KEY: key}}


async def twice(
    caller: Caller, path: str, body: Any, key: str = "k"
) -> tuple[httpx.Response, httpx.Response]:
    return (
        await caller.call("POST", path, body, **keyed(key)),
        await caller.call("POST", path, body, **keyed(key)),
    )


def same(first: httpx.Response, again: httpx.Response) -> None:
    """The second answer is the first one, and says so."""
    assert first.is_success, first.text
    assert again.status_code == first.status_code
    assert again.content == first.content
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    for name in ("location", "execution-id"):
        assert again.headers.get(name) == first.headers.get(name)


async def rows(project: Project) -> list[tuple[str, str]]:
    def read(connection: Connection) -> list[tuple[str, str]]:
        query = select(idempotency_keys.c.key, idempotency_keys.c.state)
        found = connection.execute(query.where(idempotency_keys.c.project_id == project.id))
        return sorted((row.key, row.state) for row in found)

    return await project.platform.database.read(read)


@dataclass(frozen=True)
class Furnished:
    """A project with something of everything."""

    project: Project
    execution: str
    letter: str

    async def post(self, what: str, key: str) -> httpx.Response:
        scope, path, body = CREATING[what]
        names = {"project": self.project.name, "execution": self.execution, "letter": self.letter}
        if body and "name" in body:
            body = body | {"name": body["name"].format(**names)}
        caller: Caller = getattr(self.project, scope)
        return await caller.call("POST", path.format(**names), body, **keyed(key))


@pytest_asyncio.fixture(loop_scope="module")
async def furnished(project: Project) -> Furnished:
    develop = project.develop
    await project.function("alarm", ON_WRITE)
    await project.function("worker", ECHO)
    await develop.ok("POST", "/v1/functions/alarm/versions?deploy=true", {"source": ECHO})
    await develop.ok("POST", "/v1/functions/alarm/rollback")
    await project.device()
    await develop.ok("POST", "/v1/schedules", {"name": "daily", "function": "worker",
                                               "cron": "@daily"})  # fmt: skip
    ran = await develop.call("POST", "/v1/functions/worker/invoke", 1)
    await project.platform.journal.barrier()
    letter = await _insert_letter(project, ran.headers["execution-id"])
    return Furnished(project, ran.headers["execution-id"], letter)


JOB = {"function": "worker", "payload": 1}
LIVE = {"versions": [{"version": 1, "percent": 100}]}
EVERY = {"name": "often", "function": "worker", "every": "1h"}
CREATING: dict[str, tuple[str, str, dict[str, Any] | None]] = {
    "function": ("develop", "/v1/functions", {"name": "new", "source": ECHO}),
    "version": ("develop", "/v1/functions/alarm/versions", {"source": ON_WRITE}),
    "live version": ("develop", "/v1/functions/alarm/versions?deploy=true", {"source": ON_WRITE}),
    "deployment": ("develop", "/v1/functions/alarm/deployments", LIVE),
    "rollback": ("develop", "/v1/functions/alarm/rollback", None),
    "trigger": ("develop", "/v1/triggers", {"function": "alarm", "product": "thermometer"}),
    "product": ("operate", "/v1/products", {"name": "hygrometer"}),
    "device": ("operate", "/v1/devices", {"product": "thermometer", "name": "two"}),
    "project": ("admin", "/v1/projects", {"name": "made with {project}"}),
    "API key": ("admin", "/v1/api-keys", {"name": "one", "scopes": ["ingest"]}),
    "schedule": ("develop", "/v1/schedules", EVERY),
    "run of a schedule": ("develop", "/v1/schedules/daily/trigger", None),
    "replay": ("develop", "/v1/executions/{execution}/replay", None),
    "redrive": ("operate", "/v1/dead-letters/{letter}/redrive", None),
    "job": ("develop", "/v1/jobs", JOB),
    "jobs": ("develop", "/v1/jobs", {"jobs": [JOB, JOB]}),
}


@pytest.mark.parametrize("what", CREATING)
async def test_whatever_is_created_is_created_once(furnished: Furnished, what: str) -> None:
    """Sent twice: one thing, one answer; secrets that are shown once are shown again."""
    first = await furnished.post(what, "k")
    again = await furnished.post(what, "k")

    same(first, again)
    assert await rows(furnished.project) == [("k", "answered")]


@pytest.mark.parametrize("what", CREATING)
async def test_what_is_created_is_committed_with_its_key(
    furnished: Furnished, what: str, database_kind: str
) -> None:
    """The transaction that creates says so to the key: a process may die right after it."""
    if database_kind != "sqlite":
        pytest.skip("the trigger that watches is written for SQLite; the code is the same")
    key = f"{what.replace(' ', '-')}-{furnished.project.id}"
    await furnished.project.platform.journal.run(_watch)

    made = await furnished.post(what, key)

    states = await furnished.project.platform.database.read(_seen, key)
    assert made.is_success, made.text
    assert states == (["answered"] if what in {"job", "jobs"} else ["applied", "answered"])


async def test_an_upload_is_compared_whole(project: Project) -> None:
    """Its body is read by the route, and is part of the request all the same."""
    wasm = base64.b64encode(b"\0asm\1\0\0\0" + b"\0" * 100_000).decode()
    await project.function("alarm", ECHO)
    path = "/v1/functions/alarm/versions"
    first = await project.develop.call("POST", path, {"source": ECHO}, **keyed("k"))

    problem = await project.develop.refused(422, "POST", path, {"wasm": wasm}, **keyed("k"))

    assert first.status_code == 201
    assert problem["code"] == "idempotency_mismatch"


async def test_another_body_is_refused(project: Project) -> None:
    """So is another path or query; nothing is made of it."""
    await project.operate.ok("POST", "/v1/products", {"name": "a"}, **keyed("k"))
    others = [("/v1/products", {"name": "b"}), ("/v1/products?x=1", {"name": "a"}),
              ("/v1/devices", {"name": "a"})]  # fmt: skip

    codes = [
        (await project.operate.refused(422, "POST", path, body, **keyed("k")))["code"]
        for path, body in others
    ]

    assert codes == ["idempotency_mismatch"] * 3
    assert len(await project.operate.items("/v1/products")) == 1


async def test_of_twenty_at_once_one_is_carried_out(project: Project) -> None:
    """The others are answered 409 and when to come again, or already with its answer."""
    body = {"name": "a"}

    answers = await asyncio.gather(
        *(project.operate.call("POST", "/v1/products", body, **keyed("k")) for _ in range(20))
    )
    later = await project.operate.call("POST", "/v1/products", body, **keyed("k"))

    made = [one for one in answers if one.status_code == 201]
    busy = [one for one in answers if one.status_code == 409]
    assert len(made) + len(busy) == 20
    assert sum("idempotent-replayed" not in one.headers for one in made) == 1
    assert all(one.json()["code"] == "idempotency_busy" for one in busy)
    assert all(one.headers["retry-after"] == "1" for one in busy)
    assert later.status_code == 201
    assert len(await project.operate.items("/v1/products")) == 1


async def test_a_refused_request_has_not_used_its_key(project: Project) -> None:
    """It is not stored: what was wrong may be put right, or be right later."""
    path, body = "/v1/devices", {"product": "later", "name": "one"}
    await project.operate.refused(422, "POST", path, body, **keyed("k"))
    left = await rows(project)
    await project.operate.ok("POST", "/v1/products", {"name": "later"})

    made = await project.operate.call("POST", path, body, **keyed("k"))

    assert left == []
    assert made.status_code == 201
    assert "idempotent-replayed" not in made.headers


async def test_keys_are_the_projects_own(project: Project, neighbour: Project) -> None:
    """Two projects may choose the same one."""
    for one in (project, neighbour):
        await one.operate.ok("POST", "/v1/products", {"name": one.name}, **keyed("k"))

    assert len(await neighbour.operate.items("/v1/products")) == 1


async def test_an_answer_is_for_those_who_could_have_asked(project: Project) -> None:
    """An API key with fewer rights does not get to see what the first one was shown."""
    body = {"name": "one", "scopes": ["ingest"]}
    await project.admin.ok("POST", "/v1/api-keys", body, **keyed("k"))

    problem = await project.ingest.refused(403, "POST", "/v1/api-keys", body, **keyed("k"))

    assert problem["code"] == "forbidden_scope"


async def test_who_has_no_right_learns_nothing_of_keys(project: Project) -> None:
    """Without an API key, or with one that opens nothing, the answer is the usual one."""
    await project.operate.ok("POST", "/v1/products", {"name": "a"}, **keyed("k"))
    stranger = Caller(project.operate.http, "cck_none")

    problem = await stranger.refused(401, "POST", "/v1/products", {"name": "b"}, **keyed("k"))

    assert problem["code"] == "unauthorized"


@pytest.mark.parametrize("key", ["", "a b", "\xfc", "a" * 256])
async def test_a_key_that_is_none_is_refused(project: Project, key: str) -> None:
    """Nothing is made."""
    headers = {KEY: key.encode("latin-1")}

    problem = await project.operate.refused(
        422, "POST", "/v1/products", {"name": "a"}, headers=headers
    )

    assert problem["code"] == "validation_failed"
    assert "Idempotency-Key" in problem["detail"]
    assert await project.operate.items("/v1/products") == []


async def test_other_methods_pass_the_key_over(project: Project) -> None:
    """They may be sent again as they are."""
    for _ in range(2):
        made = await project.develop.call("PUT", "/v1/secrets/A", {"value": "1"}, **keyed("k"))

    assert made.status_code == 204
    assert await rows(project) == []


# -- Routes that carry the load


async def test_a_function_runs_once_for_a_key(project: Project) -> None:
    """The same result and execution, whether it wrote something or not."""
    device = await project.device()
    await project.function("echo", ECHO)
    await project.function("writer", WRITER)
    body = {"device": device["id"], "n": 1}

    for name in ("echo", "writer"):
        same(*await twice(project.develop, f"/v1/functions/{name}/invoke", body, key=name))
    runs = await project.operate.items("/v1/executions")
    values = await project.operate.items(f"/v1/devices/{device['id']}/values")

    assert sorted(run["function"] for run in runs) == ["echo", "writer"]
    assert len(values) == 1
    assert await rows(project) == [("echo", "answered"), ("writer", "answered")]


async def test_a_function_that_failed_has_run(project: Project) -> None:
    """Its failure is the answer, also the next time; it does not run again."""
    await project.function("fails", FAILS)
    path = "/v1/functions/fails/invoke"

    first = await project.develop.refused(502, "POST", path, 1, **keyed("k"))
    again = await project.develop.call("POST", path, 1, **keyed("k"))

    assert again.status_code == 502
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json()["execution_id"] == first["execution_id"]
    assert len(await project.operate.items("/v1/executions")) == 1


async def test_an_asynchronous_run_is_queued_once(project: Project) -> None:
    """The same execution is named, in the body and in Location."""
    await project.function("echo", ECHO)
    headers = {KEY: "k", "Prefer": "respond-async"}
    path = "/v1/functions/echo/invoke"

    first = await project.develop.call("POST", path, 1, headers=headers)
    again = await project.develop.call("POST", path, 1, headers=headers)

    same(first, again)
    assert first.status_code == 202
    assert len(await project.operate.items("/v1/executions")) == 1


async def test_a_write_is_stored_once(project: Project) -> None:
    """By the device's id, by its token, and through a gateway; each way has its own keys."""
    device = await project.device()
    values = {"values": [{"key": "a", "value": 1}]}
    thing = f"/v2/things/{device['token']}"
    nobody = Caller(project.operate.http, "")

    same(*await twice(project.ingest, f"/v1/devices/{device['id']}/values", values, "one"))
    same(*await twice(project.ingest, "/v1/writes", [{"device": device["id"], **values}], "two"))
    same(*await twice(nobody, thing, values, "one"))
    refused = await nobody.call("POST", thing, {"values": []}, **keyed("one"))

    assert len(await project.operate.items(f"/v1/devices/{device['id']}/values")) == 3
    assert refused.status_code == 400
    assert refused.json()["status"] == "error"
    assert {state for _, state in await rows(project)} == {"answered"}


async def test_a_wrong_write_has_not_used_its_key(project: Project) -> None:
    """The values that were put right are stored."""
    device = await project.device()
    path = f"/v1/devices/{device['id']}/values"
    await project.ingest.refused(422, "POST", path, {"values": []}, **keyed("k"))

    written = await project.ingest.call(
        "POST", path, {"values": [{"key": "a", "value": 1}]}, **keyed("k")
    )

    assert written.status_code == 201


async def test_a_function_that_a_device_calls_runs_once(project: Project) -> None:
    """/v2, too."""
    device = await project.device()
    await project.function("echo", ECHO)
    path = f"/v2/things/{device['token']}/code/functions/echo"
    nobody = Caller(project.operate.http, "")

    same(*await twice(nobody, path, {"params": 5}))

    assert len(await project.operate.items("/v1/executions")) == 1


async def _insert_letter(project: Project, execution_id: str) -> str:
    """A dead letter as the last failure of that run would have left it."""
    letter_id = new_id("dlq")

    def change(connection: Connection) -> None:
        ran = connection.execute(select(executions).where(executions.c.id == execution_id)).one()
        connection.execute(
            insert(dead_letters).values(
                id=letter_id, project_id=project.id, function_id=ran.function_id,
                function=ran.function, handler=ran.handler, cause=ran.cause,
                execution_id=execution_id, payload="1", queue="default", status="failed",
                attempts=1, created_ms=1,
            )
        )  # fmt: skip

    await project.platform.journal.run(change)
    return letter_id


def _watch(connection: Connection) -> None:
    connection.execute(text("CREATE TABLE IF NOT EXISTS seen (key TEXT, state TEXT)"))
    connection.execute(
        text(
            "CREATE TRIGGER IF NOT EXISTS watch AFTER UPDATE ON idempotency_keys BEGIN "
            "INSERT INTO seen VALUES (NEW.key, NEW.state); END"
        )
    )


def _seen(connection: Connection, key: str) -> list[str]:
    query = text("SELECT state FROM seen WHERE key = :key ORDER BY rowid")
    return list(connection.execute(query, {"key": key}).scalars())
