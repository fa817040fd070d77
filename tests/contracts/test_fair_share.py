"""Projects beside each other: a flood delays nobody else, and each keeps to its own limits."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import asyncio
from datetime import datetime
from itertools import accumulate
from typing import Any

import pytest

from engine.dispatch import QUARANTINE_CELLS_MAX
from tests.contracts.test_flow import bind, deploy, ends_of, make, moment, until, write, written
from tests.standins.control_plane import (  # noqa: F401 - fixtures
    Project,
    http,
    neighbour,
    platform,
    project,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

CALM = {"cpu_ms": 2_000, "wall_ms": 20_000}  # two cores are shared with whatever else runs
WAIT = """export default { async job(given) {
  const ms = given.ms ?? given;
  await new Promise((done) => setTimeout(done, ms));
  return ms;
} }"""
SPIN = "export default { async job(loops) { let x = 0; while (x < loops) x++; return x; } }"
ON_WRITE = "function trigger(params, callback) { setTimeout(callback, 10000); }"
FLOOD = 5_000
LOOPS = 1_000_000  # about 1 ms


async def allow(project: Project, **allowances: float) -> None:
    await project.admin.ok("PATCH", f"/v1/projects/{project.id}", {"allowances": allowances})


async def invoke(project: Project, name: str, given: Any, **headers: str) -> Any:
    path = f"/v1/functions/{name}/invoke"
    return await project.develop.call("POST", path, given, headers=headers)


async def cancel_all(project: Project) -> None:
    """End what a test leaves behind, so that the next one finds an idle engine."""
    body = {"action": "cancel", "filter": {"since": "2000-01-01T00:00:00Z"}}
    await project.develop.ok("POST", "/v1/executions:bulk", body)


def most_at_once(runs: list[Any]) -> int:
    """Return how many of these runs were in cells at the same time."""
    changes = []
    for run in runs:
        asked_ms = datetime.fromisoformat(run["created_at"]).timestamp() * 1000
        begun_ms = asked_ms + run["queue_ms"]
        changes += [(begun_ms + 1, 1), (begun_ms + run["wall_ms"] - 1, -1)]  # clocks of 1 ms
    return max(accumulate(change for _, change in sorted(changes)))


async def test_a_flood_of_one_project_delays_no_other(project: Project, neighbour: Project) -> None:
    """5,000 jobs wait; another project's call and its ten jobs are done long before half of it."""
    await project.function("spin", SPIN, limits=CALM)
    await neighbour.function("echo", SPIN, limits=CALM)
    assert (await invoke(neighbour, "echo", 1)).status_code == 200  # its cell is there
    for _ in range(FLOOD // 1_000):
        await make(project, "spin", *[LOOPS] * 1_000)

    answer = await invoke(neighbour, "echo", 7)
    jobs = await ends_of(neighbour, await make(neighbour, "echo", *range(10)))

    left = await project.admin.ok(
        "POST",
        "/v1/executions:bulk",
        {"action": "cancel", "dry_run": True, "filter": {"function": "spin"}},
        headers={"X-Project": project.name},
    )
    await cancel_all(project)
    assert (answer.status_code, answer.json()) == (200, 7)
    assert {job["status"] for job in jobs} == {"succeeded"}
    assert left["count"] > FLOOD // 2


async def test_a_project_has_no_more_runs_in_cells_than_it_may(project: Project) -> None:
    """Twelve jobs of a tenth of a second, three at a time; and all of them run, in order."""
    await allow(project, concurrency=3)
    await project.function("wait", WAIT, limits=CALM)

    jobs = await ends_of(project, await make(project, "wait", *[100] * 12))

    runs = await project.develop.items("/v1/executions", function="wait")
    assert {job["status"] for job in jobs} == {"succeeded"}
    assert len(runs) == 12
    assert most_at_once(runs) == 3
    shares = project.platform.dispatcher.admission.shares
    assert (shares.inside(project.id), shares.waiting().get(project.id)) == (0, None)


async def test_a_call_waits_for_room_and_its_wait_can_be_seen(project: Project) -> None:
    """It is answered as if it had not waited, and its record has the time as `queue_ms`."""
    await allow(project, concurrency=1)
    await project.function("wait", WAIT, limits=CALM)
    held = asyncio.create_task(invoke(project, "wait", 300))
    await asyncio.sleep(0.1)  # until it is in its cell

    answer = await invoke(project, "wait", 0)

    run = await project.develop.ok("GET", f"/v1/executions/{answer.headers['execution-id']}")
    assert (await held).status_code == answer.status_code == 200
    assert run["queue_ms"] >= 100
    assert run["wall_ms"] < run["queue_ms"]


async def test_a_call_that_waits_for_too_long_is_told_which_limit(project: Project) -> None:
    """Its wall limit is how long it waits; nothing of it is recorded."""
    await allow(project, concurrency=1)
    await project.function("wait", WAIT, limits=CALM)
    await project.function("brief", WAIT, limits={"cpu_ms": 100, "wall_ms": 200})
    held = asyncio.create_task(invoke(project, "wait", 1_500))
    await asyncio.sleep(0.1)  # until it is in its cell

    answer = await invoke(project, "brief", 0)
    problem = answer.json()

    assert (answer.status_code, problem["code"]) == (429, "quota_exceeded")
    assert problem["limit"] == {"name": "concurrency", "value": 1, "used": 1}
    assert answer.headers["retry-after"] == "1"
    assert not (await held).is_error
    assert await project.develop.items("/v1/executions", function="brief") == []
    assert (await invoke(project, "brief", 0)).status_code == 200


async def test_large_inputs_of_one_project_do_not_fill_the_node(
    project: Project, neighbour: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node holds so many bytes of what waits; others are claimed all the same."""
    monkeypatch.setattr("engine.backlog.HELD_BYTES_MAX", 100_000)
    monkeypatch.setattr("engine.backlog.PROJECT_BYTES_MAX", 100_000)
    await allow(project, concurrency=1)
    for one in (project, neighbour):
        await one.function("wait", WAIT, limits=CALM)
    large = {"ms": 10_000, "text": "x" * 50_000}
    held = await make(project, "wait", *[large] * 4)

    jobs = await ends_of(neighbour, await make(neighbour, "wait", *[0] * 20))

    first = await project.develop.ok("GET", f"/v1/jobs/{held[0]}")
    await cancel_all(project)
    assert {job["status"] for job in jobs} == {"succeeded"}
    assert first["status"] in {"queued", "running"}


async def test_a_cancelled_run_that_waits_leaves_its_place(project: Project) -> None:
    """Those behind it take it; nothing is counted twice."""
    await allow(project, concurrency=1)
    await project.function("wait", WAIT, limits=CALM)
    first, second, third = await make(project, "wait", 200, 10_000, 0)

    await project.develop.ok("DELETE", f"/v1/jobs/{second}")

    jobs = await ends_of(project, [first, second, third])
    shares = project.platform.dispatcher.admission.shares
    assert [job["status"] for job in jobs] == ["succeeded", "cancelled", "succeeded"]
    assert (shares.inside(project.id), shares.waiting().get(project.id)) == (0, None)


async def test_the_runs_of_a_dead_cell_keep_their_places(project: Project) -> None:
    """A run that takes the cell down is counted once, as are those that start again for it."""
    await allow(project, concurrency=4)
    source = "export default { async job(n) { if (n === 3) for (;;); return n; } }"
    await project.function("dies", source, limits={"cpu_ms": 100, "wall_ms": 20_000})

    jobs = await ends_of(project, await make(project, "dies", *range(12), max_attempts=1))

    shares = project.platform.dispatcher.admission.shares
    ended = [job["status"] for job in jobs]
    assert ended.count("succeeded") == 11
    assert ended[3] == "dead_lettered"
    assert (shares.inside(project.id), shares.waiting().get(project.id)) == (0, None)
    assert project.platform.dispatcher.inflight == 0


async def test_a_full_queue_refuses_by_name_before_anything_is_stored(project: Project) -> None:
    """Jobs, calls for later, replays, and writes that would start runs; other writes go on."""
    device = await project.device()
    quiet = await project.device("quiet", "two")
    await project.function("wait", WAIT, limits=CALM)
    await project.function("hangs", ON_WRITE, limits={"cpu_ms": 1_000, "wall_ms": 20_000})
    trigger = {"function": "hangs", "product": "thermometer"}
    await project.develop.ok("POST", "/v1/triggers", trigger)
    done = await invoke(project, "wait", 0)
    await allow(project, queued=3)
    write = {"values": [{"key": "temp", "value": 1}]}

    too_many = await project.develop.call(
        "POST", "/v1/jobs", [{"function": "wait", "payload": 0}] * 4
    )
    await make(project, "wait", *[10_000] * 3)
    job = await project.develop.refused(429, "POST", "/v1/jobs", {"function": "wait"})
    later = await invoke(project, "wait", 0, prefer="respond-async")
    replay = await project.develop.call(
        "POST", f"/v1/executions/{done.headers['execution-id']}/replay"
    )
    written = await project.ingest.call("POST", f"/v1/devices/{device['id']}/values", write)
    spoken = await project.ingest.http.post(f"/v2/things/{device['token']}", json=write)
    silent = await project.ingest.call("POST", f"/v1/devices/{quiet['id']}/values", write)

    assert job["limit"] == {"name": "queued", "value": 3, "used": 3}
    answers = [too_many, later, replay, written, spoken]
    assert [answer.status_code for answer in answers] == [429] * 5
    assert {answer.headers["retry-after"] for answer in answers} == {"5"}
    assert {answer.json()["code"] for answer in answers[:4]} == {"quota_exceeded"}
    assert spoken.json()["status"] == "error"
    assert silent.status_code == 201
    timeline = await project.operate.ok("GET", f"/v1/devices/{device['id']}/values?key=temp")
    assert timeline["items"] == []
    assert len(await project.develop.items("/v1/jobs")) == 3

    await cancel_all(project)

    async def accepted() -> bool:
        again = await project.ingest.call("POST", f"/v1/devices/{device['id']}/values", write)
        return bool(again.status_code == 201)

    await until(accepted)
    await cancel_all(project)


async def test_limits_shows_what_the_key_may_use(project: Project) -> None:
    """Without a key there is no project to tell of."""
    await allow(project, concurrency=7)

    limits = await project.develop.ok("GET", "/v1/limits")
    public = await project.develop.http.get("/v1/limits")

    assert limits["project"]["concurrency"] == 7
    assert limits["project"]["queued"] == 1_000_000
    assert "project" not in public.json()


async def test_versions_that_have_killed_a_cell_share_four(project: Project) -> None:
    """Each has a cell of its own as long as its project has not too many of them."""
    dispatcher = project.platform.dispatcher
    names = [f"wait-{number}" for number in range(6)]
    for name in names:
        await project.function(name, WAIT, limits=CALM)
        function = project.platform.catalogue.function(project.id, name)
        assert function is not None
        dispatcher.quarantine(function.choose("exe_000000"))

    calls = asyncio.gather(*(invoke(project, name, 700) for name in names))
    busy = set()
    while not calls.done():
        busy.add(dispatcher.busy_cells)
        await asyncio.sleep(0.02)

    assert {answer.status_code for answer in await calls} == {200}
    assert max(busy) == QUARANTINE_CELLS_MAX


async def spend_and_lift(project: Project) -> None:
    """Have the project's CPU time used up until no more than one run of it is here."""
    platform = project.platform

    async def let_go() -> bool:
        return platform.backlog.count <= 1

    await allow(project, cpu_seconds_per_month=0.001)
    await platform.usage.look()
    await until(let_go)
    await allow(project, cpu_seconds_per_month=None)
    await platform.usage.look()


@pytest.mark.parametrize("kind", ["job", "queue"])
async def test_what_waits_of_a_project_without_cpu_time_is_given_back_and_runs_later(
    project: Project, kind: str
) -> None:
    """Its inputs take no room in memory for a month; then each run runs once, as if it had waited.

    The one that has begun goes on, whatever the others are: plain, or in batches.
    """
    platform = project.platform
    source = WAIT
    if kind == "queue":
        source = """export default { async queue(batch) {
          const ms = batch.messages[0].body;
          await new Promise((done) => setTimeout(done, ms));
        } }"""
    await project.function("spin", SPIN, limits=CALM)
    await project.function("wait", source, limits=CALM)
    assert (await invoke(project, "spin", 50 * LOOPS)).status_code == 200
    await allow(project, concurrency=1)
    (first,) = await make(project, "wait", 2_000)

    async def begun() -> bool:
        return platform.dispatcher.admission.shares.inside(project.id) == 1

    await until(begun)
    others = await make(project, "wait", *[1] * 20)
    held_before = platform.backlog.count

    await spend_and_lift(project)

    jobs = await ends_of(project, [first, *others])

    assert held_before > 1
    assert {job["status"] for job in jobs} == {"succeeded"}
    assert {job["attempts"] for job in jobs} == {1}


async def test_what_is_given_back_of_an_ordered_lane_keeps_its_order(project: Project) -> None:
    """The first has begun; the others are claimed again in their places."""
    await project.function("spin", SPIN, limits=CALM)
    assert (await invoke(project, "spin", 50 * LOOPS)).status_code == 200
    name, device = await deploy(project), await project.device()
    await bind(project, name)
    for second in range(6):
        await write(project, device, moment(second), n=second, ms=1 if second else 1_500)
    held_before = project.platform.backlog.count

    await spend_and_lift(project)

    assert await written(project, name, 6) == list(range(6))
    assert held_before > 1
