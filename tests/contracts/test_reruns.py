"""Runs over HTTP once more: cancelled, replayed; one by its id, or all of a filter."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from engine.clock import iso
from tests.standins.control_plane import (  # noqa: F401 - fixtures
    Project,
    http,
    neighbour,
    platform,
    project,
    shared,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

CALM = {"cpu_ms": 2_000, "wall_ms": 20_000}  # two cores are shared with whatever else runs
TELLS = """export default async function (given, env, ctx) {
  if (given === "fail") throw new Error("no");
  if (given === "wait") await new Promise(done => setTimeout(done, 15_000));
  await env.KV.put("last", given);
  return { given, execution: ctx.executionId, depth: ctx.depth };
}"""
ON_WRITE = """export default { afterStore(event, env) {
  return { value: event.data.values[0].value, device: event.deviceId, event: event.id };
} }"""
_numbers = itertools.count(1)


async def deploy(project: Project, source: str = TELLS, **fields: Any) -> str:
    name = f"run-{next(_numbers)}"
    await project.function(name, source, **{"limits": CALM} | fields)
    return name


async def invoke(project: Project, function: str, params: Any = None) -> str:
    """Run a function to its end, however it ends, and return the execution's id."""
    answer = await project.develop.call("POST", f"/v1/functions/{function}/invoke", params)
    return str(answer.headers.get("execution-id") or answer.json()["execution_id"])


async def begin(project: Project, function: str, params: Any = None) -> str:
    """Queue a run, and return the execution's id."""
    answer = await project.develop.ok(
        "POST",
        f"/v1/functions/{function}/invoke",
        params,
        headers={"Prefer": "respond-async"},
    )
    return str(answer["execution_id"])


async def look(project: Project, execution_id: str) -> Any:
    return await project.develop.ok("GET", f"/v1/executions/{execution_id}")


async def until(question: Callable[[], Any]) -> Any:
    """Return the first true answer to a question that is asked over HTTP."""
    async with asyncio.timeout(20):
        while not (answer := await question()):
            await asyncio.sleep(0.02)
    return answer


async def in_status(project: Project, execution_id: str, status: str) -> Any:
    async def there() -> Any:
        run = await look(project, execution_id)
        return run if run["status"] == status else None

    return await until(there)


async def bulk(project: Project, action: str, *, dry_run: bool = False, **wanted: Any) -> Any:
    body = {"action": action, "filter": wanted, "dry_run": dry_run}
    return await project.develop.ok("POST", "/v1/executions:bulk", body)


async def executions(project: Project, **query: Any) -> list[dict[str, Any]]:
    return await project.develop.items("/v1/executions", **query)


# Cancelled.


async def test_a_running_run_is_cancelled(project: Project) -> None:
    """Nothing of it is applied; its record says that it was cancelled, and stays so."""
    name = await deploy(project)
    execution_id = await begin(project, name, "wait")
    await in_status(project, execution_id, "running")

    answer = await project.develop.ok("POST", f"/v1/executions/{execution_id}/cancel")

    run = await look(project, execution_id)
    assert answer == {"execution_id": execution_id, "status": "cancelled"}
    assert (run["status"], run["error"]["message"]) == ("cancelled", "it was cancelled")
    assert (run["input"], run["result"], run["effects"]) == ("wait", None, [])
    async with asyncio.timeout(10):  # its cell is told to stop, too
        while project.platform.dispatcher.inflight:
            await asyncio.sleep(0.02)
    assert await look(project, execution_id) == run
    await project.operate.refused(404, "GET", "/v1/kv/default/last")


async def test_what_has_ended_cannot_be_cancelled(project: Project, neighbour: Project) -> None:
    """Nor what is not there, or is another project's."""
    name = await deploy(project)
    ended, waiting = await invoke(project, name), await begin(project, name, "wait")

    conflict = await project.develop.refused(409, "POST", f"/v1/executions/{ended}/cancel")
    for execution_id in ("exe_none", waiting):
        await neighbour.develop.refused(404, "POST", f"/v1/executions/{execution_id}/cancel")

    assert "ended: succeeded" in conflict["detail"]
    await project.develop.ok("POST", f"/v1/executions/{waiting}/cancel")


async def test_cancelling_an_attempt_cancels_its_job(project: Project) -> None:
    """It is not tried again."""
    name = await deploy(project)
    made = await project.develop.ok("POST", "/v1/jobs", {"function": name, "delay_seconds": 3_600})

    await project.develop.ok("POST", f"/v1/executions/{made['execution_id']}/cancel")

    job = await project.develop.ok("GET", f"/v1/jobs/{made['id']}")
    assert (job["status"], job["next_attempt_at"]) == ("cancelled", None)


# Replayed.


async def test_a_run_is_replayed(project: Project) -> None:
    """A new run, with what the old one got, on what is live now; the old one stays as it is."""
    name = await deploy(project)
    first = await invoke(project, name, {"a": 1})
    old = await look(project, first)
    newer = TELLS.replace("{ given,", "{ version: 2, given,")
    await project.develop.ok(
        "POST", f"/v1/functions/{name}/versions?deploy=true", {"source": newer}
    )

    answer = await project.develop.call("POST", f"/v1/executions/{first}/replay")
    replayed = answer.json()["execution_id"]
    run = await in_status(project, replayed, "succeeded")

    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    assert answer.headers["location"] == f"/v1/executions/{replayed}"
    assert replayed != first
    assert (run["cause"], run["handler"], run["version"]) == ("replay", "default", 2)
    assert (run["input"], run["root_id"], run["depth"]) == ({"a": 1}, replayed, 0)
    assert run["result"] == {"version": 2, "given": {"a": 1}, "execution": replayed, "depth": 0}
    assert await look(project, first) == old


async def test_a_devices_write_is_replayed(project: Project) -> None:
    """The run gets the event as it was then; a replay of the replay too."""
    name = await deploy(project, ON_WRITE)
    device = await project.device()
    await project.develop.ok("POST", "/v1/triggers", {"function": name, "product": "thermometer"})
    path = f"/v1/devices/{device['id']}/values"
    written = await project.operate.ok("POST", path, {"values": [{"key": "t", "value": 1}]})
    await project.operate.ok("POST", path, {"values": [{"key": "t", "value": 2}]})
    await project.settled()

    (first,) = written["executions"]
    runs = [await look(project, first)]
    for _ in range(2):
        again = await project.develop.ok("POST", f"/v1/executions/{runs[-1]['id']}/replay")
        runs.append(await in_status(project, again["execution_id"], "succeeded"))

    expected = {"value": 1, "device": device["id"], "event": written["event_id"]}
    assert [run["result"] for run in runs] == [expected] * 3
    assert {run["event_id"] for run in runs} == {written["event_id"]}
    assert {run["device_id"] for run in runs} == {device["id"]}
    assert [run["cause"] for run in runs] == ["write", "replay", "replay"]


async def test_a_job_is_replayed_beside_it(project: Project) -> None:
    """The job stays as it ended: the replay is a run of its own."""
    name = await deploy(project)
    made = await project.develop.ok("POST", "/v1/jobs", {"function": name, "payload": 1})
    job = await project.develop.ok("GET", f"/v1/jobs/{made['id']}?wait=20")

    again = await project.develop.ok("POST", f"/v1/executions/{job['execution_id']}/replay")
    run = await in_status(project, again["execution_id"], "succeeded")

    assert (run["job_id"], run["result"]["given"]) == (None, 1)
    assert await project.develop.ok("GET", f"/v1/jobs/{made['id']}") == job


async def test_what_cannot_run_is_not_replayed(project: Project, neighbour: Project) -> None:
    """The function or its handler is gone, or the run has not ended: 409 says which."""
    deleted, changed, waits = [await deploy(project) for _ in range(3)]
    of_deleted, of_changed = await invoke(project, deleted), await invoke(project, changed)
    waiting = await begin(project, waits, "wait")
    await project.develop.ok("DELETE", f"/v1/functions/{deleted}")
    await project.develop.ok(
        "POST", f"/v1/functions/{changed}/versions?deploy=true", {"source": ON_WRITE}
    )

    details = [
        (await project.develop.refused(409, "POST", f"/v1/executions/{one}/replay"))["detail"]
        for one in (of_deleted, of_changed, waiting)
    ]
    for caller, one in ((project.develop, "exe_none"), (neighbour.develop, of_changed)):
        await caller.refused(404, "POST", f"/v1/executions/{one}/replay")

    assert f"the function {deleted} was deleted" in details[0]
    assert f"version 2 of {changed} has no handler default" in details[1]
    assert "it has not ended" in details[2]
    await project.develop.ok("POST", f"/v1/executions/{waiting}/cancel")


# Many.


async def test_all_runs_of_a_filter_are_replayed(project: Project) -> None:
    """A dry run counts them and changes nothing; what the replay itself makes is not replayed."""
    name, other = await deploy(project), await deploy(project)
    failed = [await invoke(project, name, "fail") for _ in range(12)]
    await invoke(project, name, 1)
    await invoke(project, other, "fail")

    dry = await bulk(project, "replay", dry_run=True, function=name, status="failed")
    before = len(await executions(project))
    done = await bulk(project, "replay", function=name, status="failed")
    await project.settled()

    runs = await executions(project, function=name)
    replays = [run["id"] for run in reversed(runs) if run["cause"] == "replay"]
    assert (dry["dry_run"], dry["count"], dry["ids"]) == (True, 12, failed[:10])
    assert before == 14
    assert (done["dry_run"], done["count"], done["skipped"]) == (False, 12, 0)
    assert (len(replays), done["ids"]) == (12, replays[:10])
    assert len(await executions(project)) == 26


async def test_more_than_one_step_is_replayed(project: Project) -> None:
    """Each run once, however many steps it takes."""
    name = await deploy(project)
    await project.develop.ok(
        "POST", "/v1/jobs", [{"function": name, "payload": number} for number in range(250)]
    )
    await project.settled()

    done = await bulk(project, "replay", function=name)
    await project.settled()

    assert done["count"] == 250
    runs = await executions(project, function=name)
    details = [await look(project, run["id"]) for run in runs if run["cause"] == "replay"]
    assert sorted(run["input"] for run in details) == list(range(250))


async def test_what_cannot_be_replayed_is_counted(project: Project) -> None:
    """With the reason of the first ones; the others run."""
    name, deleted = await deploy(project), await deploy(project)
    gone = [await invoke(project, deleted) for _ in range(2)]
    await invoke(project, name)
    await project.develop.ok("DELETE", f"/v1/functions/{deleted}")

    done = await bulk(project, "replay", since="2010-10-29T00:00:00Z")

    assert (done["count"], done["skipped"]) == (1, 2)
    assert done["reasons"] == dict.fromkeys(gone, f"the function {deleted} was deleted")


async def test_all_runs_of_a_filter_are_cancelled(project: Project) -> None:
    """Queued and running ones, with their jobs."""
    name, other = await deploy(project), await deploy(project)
    running = await begin(project, name, "wait")
    await in_status(project, running, "running")
    bodies = [{"function": name, "delay_seconds": 3_600}] * 12
    jobs = await project.develop.ok("POST", "/v1/jobs", bodies)
    await project.develop.ok("POST", "/v1/jobs", {"function": other, "delay_seconds": 3_600})
    ids = [running, *(item["execution_id"] for item in jobs["items"])]

    dry = await bulk(project, "cancel", dry_run=True, function=name)
    queued = await bulk(project, "cancel", dry_run=True, function=name, status="queued")
    going = await bulk(project, "cancel", dry_run=True, function=name, status="running")
    done = await bulk(project, "cancel", function=name)

    assert (dry["count"], dry["ids"]) == (13, ids[:10])
    assert (queued["count"], going["count"], going["ids"]) == (12, 1, [running])
    assert (done["count"], done["skipped"], done["ids"]) == (13, 0, ids[:10])
    assert {run["status"] for run in await executions(project, function=name)} == {"cancelled"}
    assert len(await project.develop.items("/v1/jobs", status="cancelled")) == 12
    assert len(await executions(project, function=other, status="queued")) == 1


async def test_a_filter_is_kept_to(project: Project, neighbour: Project) -> None:
    """Device, times and project."""
    name = await deploy(project, ON_WRITE)
    devices = [await project.device(name=one) for one in ("one", "two")]
    await project.develop.ok("POST", "/v1/triggers", {"function": name, "product": "thermometer"})
    for device in devices:
        path = f"/v1/devices/{device['id']}/values"
        await project.operate.ok("POST", path, {"values": [{"key": "t", "value": 1}]})
    await project.settled()
    first, second = reversed(await executions(project))

    async def count(of: Project = project, **wanted: Any) -> int:
        return (await bulk(of, "replay", dry_run=True, **wanted))["count"]

    assert await count(device=devices[0]["id"]) == 1
    assert await count(since=second["created_at"]) == 1 + (
        first["created_at"] == second["created_at"]
    )
    assert await count(until=first["created_at"]) == 0
    assert await count(until=iso(project.platform.clock() + 1_000)) == 2
    assert await count(status="timed_out") == 0
    assert await count(function="none") == 0
    assert await count(neighbour, since="2010-10-29T00:00:00Z") == 0


WRONG = {
    "no filter": ({"action": "replay"}, "/filter"),
    "an empty filter": ({"action": "replay", "filter": {}}, "/filter"),
    "another action": ({"action": "delete", "filter": {"function": "echo"}}, "/action"),
    "replay of queued": ({"action": "replay", "filter": {"status": "queued"}}, "/filter/status"),
    "replay of running": ({"action": "replay", "filter": {"status": "running"}}, "/filter/status"),
    "cancel of failed": ({"action": "cancel", "filter": {"status": "failed"}}, "/filter/status"),
    "another status": ({"action": "replay", "filter": {"status": "done"}}, "/filter/status"),
    "another field": ({"action": "replay", "filter": {"cause": "job"}}, "/filter/cause"),
    "no time": ({"action": "replay", "filter": {"since": "x"}}, "/filter/since"),
    "no end": ({"action": "replay", "filter": {"until": "x"}}, "/filter/until"),
    "a dry run of text": ({"action": "replay", "filter": {"function": "echo"}, "dry_run": "no"},
                          "/dry_run"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
async def test_a_wrong_request_is_refused_with_its_field(shared: Project, case: str) -> None:
    """Nothing is done."""
    body, pointer = WRONG[case]

    problem = await shared.develop.refused(422, "POST", "/v1/executions:bulk", body)

    assert problem["errors"][0]["pointer"] == pointer, problem
