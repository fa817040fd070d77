"""What operators see and do over HTTP: how much is kept, nodes, queues, stuck work, metrics."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import re
from typing import Any

import pytest
from sqlalchemy import Connection, insert, select

from engine.clock import wall_clock
from engine.ids import new_id
from engine.retention import Retention
from engine.retention_rules import Keep, Kind
from engine.store.journal import Commit
from engine.store.run_queue import queue_row
from engine.store.tables import executions, nodes, run_queue
from tests.standins.control_plane import (  # noqa: F401 - fixtures
    ECHO,
    Project,
    http,
    neighbour,
    platform,
    project,
    shared,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOUR_MS = 3_600_000


async def ran(project: Project, count: int) -> list[str]:
    """Run a function so often, and return the runs, the oldest first."""
    await project.function("echo", ECHO)
    for number in range(count):
        await project.develop.ok("POST", "/v1/functions/echo/invoke", {"text": "x" * number})
    items = await project.operate.items("/v1/executions")
    return [item["id"] for item in reversed(items)]


async def waits(project: Project, **fields: Any) -> str:
    """Queue a run that is due in an hour, and return its id."""
    run_id, now_ms = new_id("exe"), wall_clock()
    row = queue_row(
        run_id=run_id,
        project_id=project.id,
        function_id="fn_none",
        cause="job",
        handler="job",
        root_id=run_id,
        created_ms=now_ms,
        given="{}",
        **{"due_ms": now_ms + HOUR_MS, **fields},
    )
    commit = Commit()
    commit.insert(run_queue, row)
    await project.platform.journal.commit(commit)
    return run_id


async def owner(project: Project, run_id: str) -> Any:
    """Return (node) of a run of the queue; None: it is not there."""

    def read(connection: Connection) -> Any:
        query = select(run_queue.c.node_id).where(run_queue.c.id == run_id)
        return connection.execute(query).first()

    return await project.platform.database.read(read)


async def add_node(project: Project, **fields: Any) -> str:
    """Register a node that was seen just now, and return its id."""
    node_id, now_ms = new_id("node"), wall_clock()
    row = {
        "id": node_id, "kind": "worker", "host": "elsewhere", "pid": 7, "release": "0.0.1",
        "started_ms": now_ms, "seen_ms": now_ms, "beat": 0, "journal_seq": 0, "state": "{}",
    }  # fmt: skip

    def change(connection: Connection) -> None:
        connection.execute(insert(nodes).values(row | fields))

    await project.platform.journal.run(change)
    return node_id


async def remove_node(project: Project, node_id: str) -> None:
    def change(connection: Connection) -> None:
        connection.execute(nodes.delete().where(nodes.c.id == node_id))

    await project.platform.journal.run(change)


# How much is kept.


async def test_a_project_that_says_nothing_keeps_what_the_settings_say(project: Project) -> None:
    """Every kind is listed, with who has said so."""
    shown = await project.develop.ok("GET", "/v1/projects/current/retention")

    assert shown.pop("project") == project.id
    assert shown.pop("dry_run") is False
    assert shown.keys() == {kind.value for kind in Kind}
    assert shown["executions"] == {
        "rows": None, "bytes": None, "age_days": 30, "source": "settings",
        "usage": None, "would_delete": None,
    }  # fmt: skip
    assert shown["values"]["age_days"] is None
    assert shown["dead_letters"]["age_days"] == 90
    assert shown["events"]["age_days"] == 30


async def test_what_a_project_says_replaces_what_it_said(project: Project) -> None:
    """Kinds that are left out go back to the settings."""
    path = f"/v1/projects/{project.id}/retention"
    await project.operate.ok("PUT", path, {"logs": {"rows": 5}, "jobs": {"age_days": 0}})
    shown = await project.operate.ok(
        "PUT", path, {"executions": {"rows": 10, "bytes": 4096, "age_days": 1.5}}
    )

    again = await project.develop.ok("GET", path)

    assert shown == again
    assert again["executions"] == again["executions"] | {
        "rows": 10, "bytes": 4096, "age_days": 1.5, "source": "project",
    }  # fmt: skip
    assert again["logs"]["rows"] is None
    assert again["jobs"] == again["jobs"] | {"age_days": 30, "source": "settings"}
    assert again["events"]["age_days"] == 1.5


async def test_a_dry_run_counts_and_changes_nothing(project: Project) -> None:
    """What there is, and what would go of it."""
    ids = await ran(project, 5)
    path = "/v1/projects/current/retention"

    shown = await project.operate.ok(
        "PUT", path, {"executions": {"rows": 2}}, params={"dry_run": "true"}
    )

    found = shown["executions"]
    assert shown["dry_run"] is True
    assert found["usage"]["rows"] == 5
    assert found["usage"]["complete"]
    assert found["usage"]["oldest_at"].endswith("Z")
    assert found["would_delete"]["rows"] == 3
    assert 0 < found["would_delete"]["bytes"] < found["usage"]["bytes"]
    assert (await project.develop.ok("GET", path))["executions"]["source"] == "settings"
    assert len(await project.operate.items("/v1/executions")) == len(ids)


async def test_usage_is_counted_when_it_is_asked_for(project: Project) -> None:
    """Values too, of this project's devices."""
    device = await project.device()
    body = {"values": [{"key": "temp", "value": number} for number in range(3)]}
    await project.operate.ok("POST", f"/v1/devices/{device['id']}/values", body)
    path = "/v1/projects/current/retention"

    shown = await project.operate.ok("GET", path, params={"usage": "true"})

    assert shown["values"]["usage"]["rows"] == 3
    assert shown["events"]["usage"]["rows"] == 1
    assert shown["values"]["would_delete"]["rows"] == 0
    assert shown["jobs"]["usage"] == {
        "rows": 0, "bytes": 0, "complete": True, "oldest_at": None,
    }  # fmt: skip


async def test_what_was_said_is_done(project: Project, neighbour: Project) -> None:
    """The newest runs stay; another project's are its own."""
    ids = await ran(project, 4)
    others = await ran(neighbour, 2)
    body = {"executions": {"rows": 1}}
    await project.operate.ok("PUT", "/v1/projects/current/retention", body)
    running = project.platform

    keep = dict.fromkeys(Kind, Keep())
    await Retention(running.database, running.journal, running.clock, keep).sweep()

    assert [one["id"] for one in await project.operate.items("/v1/executions")] == ids[-1:]
    assert len(await neighbour.operate.items("/v1/executions")) == len(others)


async def test_a_run_whose_log_is_gone_says_how_it_ended(project: Project) -> None:
    """Its log is an empty list."""
    source = "export default { async job() { console.log('hello'); return 1; } }"
    await project.function("talk", source)
    await project.develop.ok("POST", "/v1/functions/talk/invoke")
    (item,) = await project.operate.items("/v1/executions")
    path = f"/v1/executions/{item['id']}"
    assert (await project.operate.ok("GET", f"{path}/logs"))["items"]
    running = project.platform

    def forget(connection: Connection) -> None:
        connection.execute(
            executions.update().where(executions.c.id == item["id"]).values(log=None)
        )

    await running.journal.run(forget)

    assert (await project.operate.ok("GET", f"{path}/logs"))["items"] == []
    assert (await project.operate.ok("GET", path))["status"] == "succeeded"


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"executions": {"rows": 0}}, "/executions/rows"),
        ({"values": {"age_days": 0.001}}, "/values/age_days"),
        ({"schedule_fires": {"bytes": 1}}, "/schedule_fires/bytes"),
        ({"execution": {"rows": 1}}, "/execution"),
        ({"logs": {"rows": "many"}}, "/logs/rows"),
    ],
)
async def test_a_wrong_limit_is_pointed_at(
    body: dict[str, Any], pointer: str, shared: Project
) -> None:
    """And nothing is changed."""
    problem = await shared.operate.refused(422, "PUT", "/v1/projects/current/retention", body)

    assert problem["errors"][0]["pointer"] == pointer


async def test_who_may_say_how_much_is_kept(project: Project, neighbour: Project) -> None:
    """Operators of the project, and admins of any; nobody else, nowhere else."""
    path = f"/v1/projects/{neighbour.id}/retention"
    named = f"/v1/projects/{neighbour.name}/retention"
    own = "/v1/projects/current/retention"

    await project.operate.refused(403, "GET", path)
    await project.operate.refused(403, "PUT", named, {})
    await project.develop.refused(403, "PUT", own, {})
    await project.ingest.refused(403, "GET", own)
    assert (await project.admin.ok("PUT", named, {}))["project"] == neighbour.id
    await project.admin.refused(404, "GET", "/v1/projects/nowhere/retention")
    await project.operate.refused(403, "GET", "/v1/projects/nowhere/retention")


# Nodes, queues, stuck work.


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/admin/nodes", None),
        ("GET", "/v1/admin/stuck", None),
        ("GET", "/v1/admin/queues", None),
        ("POST", "/v1/admin/release", {"run": "exe_1"}),
        ("POST", "/v1/admin/tickets/reissue", {}),
    ],
)
async def test_admin_routes_want_an_admin_key(
    method: str, path: str, body: Any, shared: Project
) -> None:
    """They are about all projects."""
    for caller in (shared.develop, shared.operate, shared.ingest):
        problem = await caller.refused(403, method, path, body)
        assert problem["code"] == "forbidden_scope"


async def test_nodes_show_which_releases_they_are_of(shared: Project) -> None:
    """And which one answers; one of another release is named in /readyz too."""
    other = await add_node(shared)
    shared.platform.readiness._looked_s = float("-inf")  # it may have looked just before
    shown = {one["id"]: one for one in (await shared.admin.ok("GET", "/v1/admin/nodes"))["items"]}
    ready = await shared.admin.http.get("/readyz")
    await remove_node(shared, other)

    this = shown[shared.platform.journal.node_id or ""]
    assert this == this | {"kind": "serve", "this": True, "other_release": False}
    assert shown[other] == shown[other] | {
        "kind": "worker", "host": "elsewhere", "pid": 7, "release": "0.0.1", "this": False,
        "other_release": True, "held": 0, "state": {},
    }  # fmt: skip
    assert ready.status_code == 200
    assert ready.json()["status"] == "degraded"
    assert "worker elsewhere (process 7): 0.0.1" in ready.json()["checks"]["release"]


async def test_queues_show_what_waits_where(project: Project) -> None:
    """By queue, priority and state."""
    await waits(project)
    await waits(project, priority=0, policy='{"queue":"images"}')
    await waits(project, priority=0, policy='{"queue":"images"}', node_id="parked", lane="c:x")

    query = {"project": project.name}
    shown = await project.admin.ok("GET", "/v1/admin/queues", params=query)

    keys = ("queue", "priority", "queued", "delayed", "parked", "held")
    assert [tuple(one[key] for key in keys) for one in shown["items"]] == [
        ("default", "default", 0, 1, 0, 0),
        ("images", "high", 0, 1, 1, 0),
    ]
    assert {one["project_name"] for one in shown["items"]} == {project.name}
    assert shown["complete"]
    await project.admin.refused(404, "GET", "/v1/admin/queues", params={"project": "nowhere"})


async def test_stuck_work_is_named_with_a_remedy(project: Project) -> None:
    """A run of a node that is not there."""
    run_id = await waits(project, node_id="node_gone")

    items = (await project.admin.ok("GET", "/v1/admin/stuck"))["items"]

    (found,) = [one for one in items if one["id"] == run_id]
    assert found == found | {
        "kind": "orphaned", "project": project.id, "node": "node_gone", "detail": None,
    }  # fmt: skip
    assert "release the node" in found["remedy"]


async def test_a_run_is_released_and_a_dry_run_only_says_so(project: Project) -> None:
    """Then it is nobody's, and whoever is free takes it when it is due."""
    node_id = await add_node(project)
    run_id = await waits(project, node_id=node_id)

    asked = {"run": run_id, "dry_run": True}
    dry = await project.admin.ok("POST", "/v1/admin/release", asked)
    before = await owner(project, run_id)
    done = await project.admin.ok("POST", "/v1/admin/release", {"run": run_id})
    after = await owner(project, run_id)
    await remove_node(project, node_id)

    assert dry == {"dry_run": True, "node": node_id, "runs": 1, "deliveries": 0}
    assert before == (node_id,)
    assert done == dry | {"dry_run": False}
    assert after == (None,)


async def test_a_node_is_released_with_all_that_it_has(project: Project) -> None:
    """It is gone from the list; if it lives, it begins a new life."""
    node_id = await add_node(project)
    runs = [await waits(project, node_id=node_id) for _ in range(3)]

    asked = {"node": node_id, "dry_run": True}
    dry = await project.admin.ok("POST", "/v1/admin/release", asked)
    done = await project.admin.ok("POST", "/v1/admin/release", {"node": node_id})

    assert dry == {"dry_run": True, "node": node_id, "runs": 3, "deliveries": 0}
    assert done == dry | {"dry_run": False}
    assert [await owner(project, run_id) for run_id in runs] == [(None,)] * 3
    await project.admin.refused(404, "POST", "/v1/admin/release", {"node": node_id})


async def test_what_cannot_be_released_is_refused(shared: Project) -> None:
    """Nothing, both, what is not there; and the only node of an embedded database."""
    path = "/v1/admin/release"
    await shared.admin.refused(422, "POST", path, {})
    await shared.admin.refused(422, "POST", path, {"run": "exe_1", "node": "node_1"})
    await shared.admin.refused(404, "POST", path, {"run": "exe_1"})
    await shared.admin.refused(404, "POST", path, {"node": "parked"})
    if shared.platform.database.is_sqlite:
        own = {"node": shared.platform.journal.node_id}
        await shared.admin.refused(409, "POST", path, own)


async def test_tickets_are_issued_for_what_is_due(project: Project) -> None:
    """Not for what is delayed; a dry run only lists them."""
    await waits(project)

    shown = await project.admin.ok("POST", "/v1/admin/tickets/reissue", {"dry_run": True})
    done = await project.admin.ok("POST", "/v1/admin/tickets/reissue", {})
    bare = await project.admin.ok("POST", "/v1/admin/tickets/reissue")

    assert shown["dry_run"] is True
    assert done["dry_run"] is bare["dry_run"] is False
    assert project.id not in {one["project"] for one in shown["items"]}


# Metrics.


async def test_metrics_show_the_queue_of_all_nodes(project: Project) -> None:
    """With the nodes, the jobs by status, and what was counted here."""
    await waits(project, policy='{"queue":"images"}')
    project.platform.metrics.counts["dead_letters"] += 1
    project.platform.metrics.stored._asked_s = float("-inf")

    text = (await project.admin.http.get("/metrics")).text

    assert re.search(
        r'cloudcode_queue_depth\{priority="default",queue="images",state="delayed"\} [1-9]', text
    )
    assert 'cloudcode_nodes{kind="serve"} 1.0' in text
    assert 'cloudcode_jobs{status="succeeded"} ' in text
    assert re.search(r"cloudcode_dead_letters_total [1-9]", text)
    assert "cloudcode_database_up 1.0" in text
    for name in (
        "cloudcode_queue_oldest_age_seconds{", "cloudcode_schedule_lag_seconds ",
        "cloudcode_schedule_missed_total ", 'cloudcode_retries_total{reason="failed"} ',
        'cloudcode_retries_total{reason="lost"} ', "cloudcode_lease_takeovers_total ",
        "cloudcode_lease_lost_total ", "cloudcode_runs_void_total ",
        "cloudcode_tickets_issued_total ", "cloudcode_tickets_taken_total ",
        'cloudcode_held{kind="runs"} ',
    ):  # fmt: skip
        assert f"\n{name}" in text, name
