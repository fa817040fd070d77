"""What became of an event: for each function whether it ran, and if not, why."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import asyncio
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from sqlalchemy import Connection, insert, select, update

from engine.clock import iso
from engine.ids import new_id
from engine.policies import Debounce, Flow, Queued, Throttle, write_queued
from engine.quotas import TRIGGER_DEPTH_MAX
from engine.store.events import first_id, made_ms
from engine.store.tables import (
    PARKED,
    dead_letters,
    deployments,
    events,
    executions,
    functions,
    run_queue,
    triggers,
    versions,
)
from tests.standins.control_plane import (  # noqa: F401 - fixtures
    ECHO,
    ON_WRITE,
    Project,
    http,
    neighbour,
    platform,
    project,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

FAILS = "function trigger(params, callback) { throw new Error('too hot') }"
WRITES = """
export default { async afterStore(event, env) {
  await env.DEVICES.write(event.deviceId, [{ key: "n", value: 1 }]); } }
"""
FAR_MS = 3_600_000


class Scene:
    """A device of a product, functions that its writes may run, and the rows of the store."""

    def __init__(self, project: Project, device: dict[str, Any]) -> None:
        self.project = project
        self.device = device

    async def bind(self, name: str, source: str = ON_WRITE, keys: tuple[str, ...] = ()) -> str:
        await self.project.function(name, source)
        return await self.trigger(name, keys)

    async def trigger(self, name: str, keys: tuple[str, ...] = ()) -> str:
        body = {"function": name, "product": "thermometer", "keys": list(keys)}
        made = await self.project.develop.ok("POST", "/v1/triggers", body)
        return str(made["id"])

    async def write(self, *keys: str) -> str:
        """Write values and wait until everything that they caused has ended."""
        values = [{"key": key, "value": 1} for key in keys or ("temp",)]
        path = f"/v1/devices/{self.device['id']}/values"
        made = await self.project.ingest.ok("POST", path, {"values": values})
        async with asyncio.timeout(20):
            while await self._waiting():
                await asyncio.sleep(0.01)  # runs end by themselves, in cells
        return str(made["event_id"])

    async def _waiting(self) -> bool:
        await self.project.platform.journal.barrier()
        query = select(run_queue.c.id).where(run_queue.c.project_id == self.project.id)

        def read(connection: Connection) -> bool:
            return connection.execute(query).first() is not None

        return await self.project.platform.database.read(read)

    async def explain(self, event_id: str) -> dict[str, Any]:
        path = f"/v1/events/{event_id}/explain"
        told: dict[str, Any] = await self.project.operate.ok("GET", path)
        return told

    async def only(self, event_id: str) -> dict[str, Any]:
        """Return the one function that is concerned."""
        (item,) = (await self.explain(event_id))["items"]
        return dict(item)

    async def do(self, *statements: Any) -> None:
        def change(connection: Connection) -> None:
            for statement in statements:
                connection.execute(statement)

        await self.project.platform.journal.run(change)

    # Rows as other nodes, and limits, would have left them.

    async def stored_event(self, source: str = "http") -> str:
        """An event that has run nothing yet."""
        event_id = new_id("evt")
        await self.do(
            insert(events).values(
                id=event_id,
                project_id=self.project.id,
                device_id=self.device["id"],
                received_ms=self.project.platform.clock(),
                source=source,
                payload='{"values":[{"key":"temp","value":1}]}',
            )
        )
        return event_id

    async def function_id(self, name: str) -> str:
        query = select(functions.c.id).where(
            functions.c.name == name, functions.c.project_id == self.project.id
        )

        def read(connection: Connection) -> str:
            return connection.execute(query).scalar_one()

        return await self.project.platform.database.read(read)

    async def ended(self, event_id: str | None, name: str, status: str, **fields: Any) -> str:
        run_id = str(fields.pop("id", new_id("exe")))
        now_ms = self.project.platform.clock()
        report = {"root_id": fields.pop("root_id", run_id), **fields.pop("report", {})}
        function_id = await self.function_id(name)
        row = {
            "project_id": self.project.id, "id": run_id, "function_id": function_id,
            "function": name, "version": 1, "cause": "write", "handler": "trigger",
            "event_id": event_id, "device_id": self.device["id"], "status": status,
            "created_ms": now_ms, "clock_ms": now_ms, "seed": "", "attempt": 1, "queue_us": 0,
            "wall_us": 0, "cpu_us": 0, "peak_memory_bytes": 0,
            "report": msgspec.json.encode(report).decode(), **fields,
        }  # fmt: skip
        await self.do(insert(executions).values(**row))
        return run_id

    async def queued(self, event_id: str, name: str, **fields: Any) -> str:
        run_id = new_id("exe")
        now_ms = self.project.platform.clock()
        policy = fields.pop("policy", Queued())
        row = {
            "id": run_id, "project_id": self.project.id,
            "function_id": await self.function_id(name), "cause": "write", "handler": "trigger",
            "event_id": event_id, "device_id": self.device["id"], "root_id": run_id, "depth": 0,
            "created_ms": now_ms, "due_ms": now_ms, "policy": write_queued(policy), **fields,
        }  # fmt: skip
        await self.do(insert(run_queue).values(**row))
        return run_id


@pytest_asyncio.fixture(loop_scope="module")
async def scene(project: Project) -> Scene:
    return Scene(project, await project.device())


async def test_an_event_that_nothing_waits_for(scene: Scene) -> None:
    """It is said that there is no trigger, and what would make one."""
    told = await scene.explain(await scene.write("temp", "door"))

    assert told["items"] == []
    assert told["keys"] == ["temp", "door"]
    assert (told["device"], told["product"]) == ("one", "thermometer")
    assert told["summary"].startswith("Nothing ran: no trigger is bound to the product")
    assert "POST /v1/triggers" in told["summary"]


async def test_a_function_that_ran(scene: Scene) -> None:
    """With its execution, its version, and the deployment that chose that."""
    trigger_id = await scene.bind("alarm")
    event_id = await scene.write()

    told = await scene.explain(event_id)

    (item,) = told["items"]
    (run,) = item["executions"]
    assert (item["outcome"], item["reason"]) == ("ran", "succeeded")
    assert (item["function"], item["trigger_id"]) == ("alarm", trigger_id)
    assert (run["status"], run["attempt"], run["version"]) == ("succeeded", 1, 1)
    assert item["version"] == 1
    assert item["version_why"].startswith("dep_")
    assert item["version_why"].endswith("made it live for all runs")
    assert told["summary"] == "Ran: alarm (succeeded)."
    assert told["event"]["id"] == event_id


async def test_a_function_that_failed_has_run(scene: Scene) -> None:
    """The error is told as the author wrote it."""
    await scene.bind("alarm", FAILS)

    item = await scene.only(await scene.write())

    assert (item["outcome"], item["reason"]) == ("ran", "failed")
    assert "too hot" in item["detail"]
    assert item["executions"][0]["error"]["message"] == "too hot"


async def test_the_share_of_a_version_is_told(scene: Scene) -> None:
    """Of two that are live, the one that ran, and its percentage."""
    await scene.bind("alarm")
    await scene.project.develop.ok("POST", "/v1/functions/alarm/versions", {"source": ON_WRITE})
    shares = [{"version": 1, "percent": 1}, {"version": 2, "percent": 99}]
    path = "/v1/functions/alarm/deployments"
    await scene.project.develop.ok("POST", path, {"versions": shares})

    item = await scene.only(await scene.write())

    percent = {1: 1, 2: 99}[item["version"]]
    assert f"gives it {percent} % of the runs" in item["version_why"]


async def test_an_event_without_the_keys_of_a_trigger(scene: Scene) -> None:
    """Both are named: what the trigger wants, and what the event has."""
    await scene.bind("alarm", keys=("smoke", "gas"))

    told = await scene.explain(await scene.write("temp"))

    (item,) = told["items"]
    assert item["outcome"] == "filtered"
    assert item["keys"] == ["smoke", "gas"]
    assert "smoke, gas; the event has temp" in item["detail"]
    assert told["summary"] == "Nothing ran. Filtered out by its keys: alarm."


async def test_two_triggers_of_one_function(scene: Scene) -> None:
    """Each has its own run, or its own reason for none."""
    first = await scene.bind("alarm", keys=("temp",))
    second = await scene.trigger("alarm", ("temp", "door"))
    third = await scene.trigger("alarm", ("smoke",))

    told = await scene.explain(await scene.write("temp"))

    found = {item["trigger_id"]: item["outcome"] for item in told["items"]}
    runs = {run["id"] for item in told["items"] for run in item["executions"]}
    assert found == {first: "ran", second: "ran", third: "filtered"}
    assert len(runs) == 2


async def test_a_trigger_that_came_later(scene: Scene) -> None:
    """It was not there when the event came; runs of an older one are not taken for its."""
    old = await scene.bind("alarm")
    event_id = await scene.write()
    await scene.project.develop.ok("DELETE", f"/v1/triggers/{old}")
    new = await scene.trigger("alarm")
    await scene.do(
        update(triggers).where(triggers.c.id == new).values(created_ms=triggers.c.created_ms + 1)
    )

    told = await scene.explain(event_id)

    found = [(item["trigger_id"], item["outcome"]) for item in told["items"]]
    assert found == [(new, "not_bound_then"), (None, "ran")]
    assert "its trigger was deleted since" in told["items"][1]["detail"]


async def test_a_function_that_was_deleted_since(scene: Scene) -> None:
    """Its record names it."""
    await scene.bind("alarm")
    event_id = await scene.write()
    await scene.project.develop.ok("DELETE", "/v1/functions/alarm")

    item = await scene.only(event_id)

    assert (item["function"], item["outcome"]) == ("alarm", "ran")


async def test_functions_that_could_and_are_not_bound(scene: Scene) -> None:
    """Only those that can take device writes."""
    await scene.project.function("alarm", ON_WRITE)
    await scene.project.function("job", ECHO)

    item = await scene.only(await scene.write())

    assert (item["function"], item["outcome"]) == ("alarm", "not_bound")
    assert "handler trigger" in item["detail"]


async def test_a_version_without_a_handler(scene: Scene) -> None:
    """The API refuses such a deployment; where one was made otherwise, it is named."""
    await scene.bind("alarm")
    function_id = await scene.function_id("alarm")
    await scene.do(
        update(versions).where(versions.c.function_id == function_id).values(handlers='["job"]')
    )

    item = await scene.only(await scene.stored_event())

    assert item["outcome"] == "no_handler"
    assert "version 1" in item["detail"]


async def test_an_event_at_the_end_of_a_long_chain(scene: Scene) -> None:
    """A function wrote it, too deep to trigger anything; that run is named."""
    await scene.bind("alarm")
    event_id = await scene.stored_event(source="function")
    effects = [{"kind": "write", "device": scene.device["id"], "values": 1, "event_id": event_id}]
    report = {"depth": TRIGGER_DEPTH_MAX, "effects": effects}
    writer = await scene.ended(
        None, "alarm", "succeeded", id=f"{first_id('exe', made_ms(event_id) - 5)}{'0' * 20}",
        report=report,
    )  # fmt: skip

    told = await scene.explain(event_id)

    assert told["items"][0]["outcome"] == "too_deep"
    assert told["written_by"] == writer
    assert writer in told["items"][0]["detail"]


async def test_a_chain_of_functions_is_followed(scene: Scene) -> None:
    """A function that triggers itself: the last event of the chain says why it ended there."""
    await scene.bind("echo", WRITES)
    await scene.write()

    newest = (await scene.project.operate.ok("GET", "/v1/events"))["items"][0]
    item = await scene.only(newest["id"])

    assert newest["source"] == "function"
    assert item["outcome"] == "too_deep"


async def test_an_event_whose_runs_are_not_on_record(scene: Scene) -> None:
    """It is not guessed what became of them."""
    await scene.bind("alarm")

    item = await scene.only(await scene.stored_event())

    assert item["outcome"] == "unknown"


@pytest.mark.parametrize("reason", ["throttled", "rate_limited", "debounced", "singleton"])
async def test_a_run_that_was_skipped(scene: Scene, reason: str) -> None:
    """The word and the message of the limit."""
    await scene.bind("alarm")
    event_id = await scene.stored_event()
    error = {"name": "Skipped", "message": "one is enough", "reason": reason}
    await scene.ended(event_id, "alarm", "skipped", report={"error": error}, version=0)

    item = await scene.only(event_id)

    assert (item["outcome"], item["reason"]) == ("skipped", reason)
    assert "one is enough" in item["detail"]
    assert item["version"] is None


async def test_a_run_that_was_cancelled(scene: Scene) -> None:
    """With what was said then."""
    await scene.bind("alarm")
    event_id = await scene.stored_event()
    error = {"name": "Cancelled", "message": "by hand"}
    await scene.ended(event_id, "alarm", "cancelled", report={"error": error})

    item = await scene.only(event_id)

    assert (item["outcome"], item["detail"]) == ("cancelled", "by hand")


WAITS = {
    "retry": {"attempt": 2},
    "debounced": {"policy": Queued(flow=Flow(debounce=Debounce(period_ms=FAR_MS, key="d")))},
    "throttled": {"policy": Queued(flow=Flow(throttle=Throttle(limit=1, period_ms=9, key="t")))},
    "lateness": {"policy": Queued(order=True), "lane": "o:x", "position_ms": 1},
    "later": {},
}


@pytest.mark.parametrize("reason", WAITS)
async def test_a_run_that_waits_for_its_time(scene: Scene, reason: str) -> None:
    """Why, and until when; an attempt that has failed stands beside it."""
    await scene.bind("alarm")
    event_id = await scene.stored_event()
    due_ms = scene.project.platform.clock() + FAR_MS
    root_id = new_id("exe")
    if reason == "retry":
        await scene.ended(event_id, "alarm", "failed", id=root_id)
    run_id = await scene.queued(
        event_id, "alarm", due_ms=due_ms, **{"root_id": root_id, **WAITS[reason]}
    )

    item = await scene.only(event_id)

    assert (item["outcome"], item["reason"]) == ("waiting", reason)
    assert item["due_at"] == iso(due_ms)
    assert item["waiting_execution"] == run_id
    assert [one["status"] for one in item["executions"]] == ["failed"] * (reason == "retry")


@pytest.mark.parametrize(("ordered", "reason"), [(False, "limit"), (True, "order")])
async def test_a_run_whose_lane_is_full(scene: Scene, *, ordered: bool, reason: str) -> None:
    """A limit of its version, or an earlier run of its device, holds it up."""
    await scene.bind("alarm")
    event_id = await scene.stored_event()
    policy = Queued(order=ordered)
    # Far away: no poller shall look after the lane meanwhile.
    due_ms = scene.project.platform.clock() + FAR_MS
    await scene.queued(
        event_id, "alarm", node_id=PARKED, lane="x:y", position_ms=1, policy=policy, due_ms=due_ms
    )

    item = await scene.only(event_id)

    assert (item["outcome"], item["reason"]) == ("waiting", reason)


async def test_a_run_that_a_node_has(scene: Scene) -> None:
    """It is queued there."""
    await scene.bind("alarm")
    event_id = await scene.stored_event()
    node_id = scene.project.platform.journal.node_id
    await scene.queued(event_id, "alarm", node_id=node_id)

    item = await scene.only(event_id)

    assert (item["outcome"], item["reason"]) == ("queued", "claimed")
    assert node_id in item["detail"]


async def test_a_run_whose_version_is_in_quarantine(scene: Scene) -> None:
    """It has taken a cell down: that is why it waits, and how long."""
    await scene.bind("alarm")
    event_id = await scene.stored_event()
    platform = scene.project.platform
    await scene.queued(event_id, "alarm", node_id=platform.journal.node_id)
    function = platform.catalogue.function_by_id(await scene.function_id("alarm"))
    assert function is not None

    platform.dispatcher.quarantine(function.shares[0][1])
    item = await scene.only(event_id)

    assert item["outcome"] == "quarantined"
    assert item["quarantined_until"] > iso(platform.clock())


async def test_a_run_that_failed_at_every_attempt(scene: Scene) -> None:
    """All attempts are listed, and the dead letter is named."""
    await scene.bind("alarm")
    event_id = await scene.stored_event()
    error = {"name": "Error", "message": "no"}
    first = await scene.ended(event_id, "alarm", "failed", report={"error": error})
    last = await scene.ended(
        event_id, "alarm", "timed_out", attempt=2, root_id=first, report={"error": error}
    )
    letter_id = new_id("dlq")
    letter = {
        "id": letter_id, "project_id": scene.project.id,
        "function_id": await scene.function_id("alarm"), "function": "alarm",
        "handler": "trigger", "cause": "write", "execution_id": last, "event_id": event_id,
        "queue": "default", "status": "timed_out", "attempts": 2, "created_ms": 1,
    }  # fmt: skip
    await scene.do(insert(dead_letters).values(**letter))

    item = await scene.only(event_id)

    assert item["outcome"] == "dead_lettered"
    assert item["dead_letter"] == letter_id
    assert [(one["id"], one["attempt"]) for one in item["executions"]] == [(first, 1), (last, 2)]
    assert "all 2 attempts failed, the last as timed_out: no" in item["detail"]


async def test_a_deployment_that_came_after_the_run_did_not_choose(scene: Scene) -> None:
    """The version that ran is explained by what was live then."""
    await scene.bind("alarm")
    event_id = await scene.write()
    before = (await scene.only(event_id))["version_why"]
    path = "/v1/functions/alarm/deployments"
    body = {"versions": [{"version": 1, "percent": 100}]}
    again = await scene.project.develop.ok("POST", path, body)
    later = update(deployments).where(deployments.c.id == again["id"])
    await scene.do(later.values(created_ms=deployments.c.created_ms + FAR_MS))

    assert (await scene.only(event_id))["version_why"] == before


async def test_events_are_listed(scene: Scene) -> None:
    """Newest first, by device and time; one can be read by its id."""
    other = await scene.project.device(name="two")
    first, second = await scene.write("a"), await scene.write("b")
    path = f"/v1/devices/{other['id']}/values"
    third = (await scene.project.ingest.ok("POST", path, {"values": [{"key": "c", "value": [1]}]}))[
        "event_id"
    ]

    whole = await scene.project.operate.ok("GET", f"/v1/events/{third}")
    every = await scene.project.operate.items("/v1/events", limit=2)
    of_one = await scene.project.operate.items("/v1/events", device=scene.device["id"])
    since = await scene.project.operate.items("/v1/events", since=whole["received_at"])
    none = await scene.project.operate.items("/v1/events", since="2100-01-01T00:00:00Z")

    assert [one["id"] for one in every] == [third, second, first]
    assert [one["id"] for one in of_one] == [second, first]
    assert since[0]["id"] == third
    assert none == []
    assert (whole["device_id"], whole["source"]) == (other["id"], "http")
    assert [(one["key"], one["value"]) for one in whole["values"]] == [("c", [1])]


async def test_events_of_others_are_not_there(scene: Scene, neighbour: Project) -> None:
    """Neither in a list nor by their id."""
    event_id = await scene.write()

    assert await neighbour.operate.items("/v1/events") == []
    for path in (f"/v1/events/{event_id}", f"/v1/events/{event_id}/explain"):
        await neighbour.operate.refused(404, "GET", path)
