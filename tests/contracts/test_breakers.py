"""Functions that take their cells down, and devices that make them: held back, shown, let in again.

The clock is ahead as far as a test says, so no test waits for a breaker's time.
"""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
import pytest_asyncio

from engine.breaker_rules import HARM_MAX, OPEN_MS, open_ms
from engine.clock import wall_clock
from engine.dispatch import QUARANTINE_MS
from engine.events import parse_time
from engine.settings import Settings
from engine.wiring import Platform, open_platform
from tests.standins.control_plane import (  # noqa: F401 - fixtures
    Project,
    http,
    neighbour,
    project,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHORT = {"cpu_ms": 50, "wall_ms": 20_000}  # a loop ends soon, and a busy machine ends nobody
BAD_MS = OPEN_MS + 1_000
DEVICES = 20
POISONS = 10
SENSITIVE = """export default { async afterStore(event, env) {
  if (event.data.values.some((one) => one.value === "poison")) for (;;);
  return event.deviceId;
} }"""
ROBUST = "export default { async afterStore(event) { return event.deviceId; } }"
KILLS = "export default { async job(given) { if (given === 'kill') for (;;); return given; } }"
_numbers = itertools.count(1)


class AheadClock:
    """The machine's time, and as much later as a test says."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def __call__(self) -> int:
        return wall_clock() + self.ahead_ms


@pytest.fixture(scope="module")
def clock() -> AheadClock:
    return AheadClock()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(
    tmp_path_factory: pytest.TempPathFactory, clock: AheadClock
) -> AsyncIterator[Platform]:
    """One for all tests of a module; what is PostgreSQL's own: test_breaker_nodes."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("breakers") / "data", warm_cells=2)
    async with open_platform(settings, clock=clock) as opened:
        yield opened


async def until(question: Callable[[], Awaitable[Any]]) -> Any:
    """Return the first true answer to a question that is asked over HTTP."""
    async with asyncio.timeout(30):
        while not (answer := await question()):
            await asyncio.sleep(0.02)
        return answer


async def deploy(project: Project, source: str = KILLS) -> str:
    name = f"held-{next(_numbers)}"
    await project.function(name, source, limits=SHORT)
    return name


async def invoke(project: Project, name: str, given: Any, **headers: str) -> httpx.Response:
    path = f"/v1/functions/{name}/invoke"
    answer: httpx.Response = await project.develop.call("POST", path, given, headers=headers)
    return answer


async def breakers(project: Project) -> list[dict[str, Any]]:
    return await project.operate.items("/v1/breakers")


async def opened(project: Project, name: str) -> dict[str, Any]:
    """Kill with the function until it is held back, and return its breaker."""
    for _ in range(HARM_MAX):
        answer = await invoke(project, name, "kill")
        assert answer.status_code == 502, answer.text
    (breaker,) = await until(lambda: breakers(project))
    return dict(breaker)


async def ended(project: Project, execution: str) -> Any:
    async def look() -> Any:
        run = await project.develop.ok("GET", f"/v1/executions/{execution}")
        return run["status"] not in {"queued", "running"} and run

    return await until(look)


async def queued(project: Project, name: str, given: Any) -> str:
    """Ask for a run without waiting for it; return its execution's id."""
    answer = await invoke(project, name, given, prefer="respond-async")
    assert answer.status_code == 202, answer.text
    return str(answer.json()["execution_id"])


# Devices.


class Plant:
    """Twenty devices whose writes a function takes, one of them with values that it cannot bear."""

    def __init__(self, project: Project, name: str, devices: list[str]) -> None:
        self.project = project
        self.name = name
        self.devices = devices
        self.poisonous = devices[0]

    async def write(self, device: str, value: Any) -> None:
        body = {"values": [{"key": "temp", "value": value}]}
        await self.project.ingest.ok("POST", f"/v1/devices/{device}/values", body)

    async def write_all(self) -> None:
        """Have the good ones write while the other one kills."""
        for number in range(POISONS):
            await asyncio.gather(*(self.write(device, number) for device in self.devices[1:]))
            await self.write(self.poisonous, "poison")

    async def runs(self, **query: Any) -> list[dict[str, Any]]:
        return await self.project.develop.items("/v1/executions", function=self.name, **query)

    async def settled(self) -> None:
        async def nothing_waits() -> bool:
            return not await self.runs(status="queued") and not await self.runs(status="running")

        await until(nothing_waits)


async def plant(project: Project) -> Plant:
    name = await deploy(project, SENSITIVE)
    devices = [(await project.device(name=f"device-{n}"))["id"] for n in range(DEVICES)]
    body = {"function": name, "product": "thermometer"}
    await project.develop.ok("POST", "/v1/triggers", body)
    return Plant(project, name, devices)


async def test_one_device_that_kills_is_set_aside_and_loses_nothing(project: Project) -> None:
    """The other 19 go on as if nothing was; its events wait, and run once the code is mended."""
    scene = await plant(project)

    await scene.write_all()
    await scene.settled()

    runs = await scene.runs()
    per_device = Counter((run["device_id"], run["status"]) for run in runs)
    for device in scene.devices[1:]:
        assert per_device[device, "succeeded"] == POISONS
    (breaker,) = await breakers(project)
    aside = breaker["set_aside"]
    assert per_device[scene.poisonous, "cpu_exceeded"] == POISONS - aside
    assert per_device[scene.poisonous, "skipped"] == aside
    assert HARM_MAX <= POISONS - aside < POISONS
    assert len(runs) == POISONS * DEVICES
    assert (breaker["scope"], breaker["state"]) == ("device", "open")
    assert breaker["device_id"] == scene.poisonous
    assert breaker["error"]["limit"]["name"] == "cpu_ms"

    # It is seen: its values, its dead letters, and why.
    values = f"/v1/devices/{scene.poisonous}/values?key=temp"
    assert len((await project.operate.ok("GET", values))["items"]) == POISONS
    letters = await project.operate.items("/v1/dead-letters", breaker=breaker["id"])
    assert len(letters) == aside
    assert {letter["status"] for letter in letters} == {"skipped"}
    assert await project.operate.items("/v1/dead-letters") == letters
    told = await project.operate.ok("GET", f"/v1/events/{letters[0]['event_id']}/explain")
    (item,) = told["items"]
    assert (item["outcome"], item["reason"]) == ("set_aside", "breaker_open")
    assert breaker["id"] in item["detail"]
    path = f"/v1/breakers/{breaker['id']}/redrive"
    problem = await project.operate.refused(409, "POST", path)
    assert "close" in problem["detail"]

    # The code is mended: nothing is held back any more, and each of them runs once.
    body = {"source": ROBUST}
    await project.develop.ok("POST", f"/v1/functions/{scene.name}/versions?deploy=true", body)
    assert await breakers(project) == []
    closed = await project.operate.ok("POST", f"/v1/breakers/{breaker['id']}/close")
    assert closed["state"] == "closed"  # its letters still name it
    counted = await project.operate.ok("POST", f"{path}?dry_run=true")
    assert (counted["dry_run"], counted["count"], counted["executions"]) == (True, aside, [])
    assert (await project.operate.ok("POST", path))["count"] == aside
    await scene.settled()
    assert await project.operate.items("/v1/dead-letters") == []
    again = await scene.runs(status="succeeded")
    assert sum(run["device_id"] == scene.poisonous for run in again) == aside
    problem = await project.operate.refused(404, "POST", path)
    assert "is closed already, or never was" in problem["detail"]


async def test_a_device_is_tried_again_and_let_in_when_it_is_well(
    project: Project, clock: AheadClock
) -> None:
    """Never a life sentence: after each wait one event is tried, and a good one ends it."""
    scene = await plant(project)
    await scene.write_all()
    await scene.settled()
    (first,) = await breakers(project)

    clock.ahead_ms += BAD_MS
    await scene.write(scene.poisonous, "poison")
    await scene.settled()
    (second,) = await until(lambda: _opened_again(project, first))
    clock.ahead_ms += open_ms(2) + 1_000
    await scene.write(scene.poisonous, 21)

    await until(lambda: _none(project))
    assert second["set_aside"] == first["set_aside"] + 1  # the trial is a dead letter, too
    await scene.write(scene.poisonous, 22)
    await scene.settled()
    runs = await scene.runs(status="succeeded")
    assert sum(run["device_id"] == scene.poisonous for run in runs) == 2


async def _none(project: Project) -> bool:
    return await breakers(project) == []


async def _opened_again(project: Project, before: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in await breakers(project) if one["openings"] > before["openings"]]


# Functions.


async def test_a_function_that_kills_is_held_back_and_says_so(
    project: Project, clock: AheadClock
) -> None:
    """Callers are told at once why, until when and what to do; then one run is let through."""
    name = await deploy(project)
    breaker = await opened(project, name)

    refused = await invoke(project, name, "fine")

    problem = refused.json()
    assert (refused.status_code, problem["code"]) == (503, "breaker_open")
    assert 1 <= int(refused.headers["retry-after"]) <= OPEN_MS // 1000
    assert problem["breaker"] == breaker["id"]
    assert "cpu_ms 50" in problem["detail"]
    assert f"/v1/breakers/{breaker['id']}/close" in problem["detail"]
    assert (breaker["scope"], breaker["failures"]) == ("function", HARM_MAX)
    before = len(await project.develop.items("/v1/executions", function=name))
    assert before == HARM_MAX  # what is refused leaves no record

    clock.ahead_ms += BAD_MS
    assert (await invoke(project, name, "fine")).json() == "fine"
    await until(lambda: _none(project))
    assert (await invoke(project, name, "fine")).status_code == 200


async def test_the_public_is_told_nothing_of_the_inside(project: Project) -> None:
    """Whoever knows a function's address learns that it is held back, and no more."""
    source = "export default { async fetch() { for (;;); } }"
    name = await deploy(project, source)
    path = f"/f/{project.name}/{name}/"
    for _ in range(HARM_MAX):
        assert (await project.develop.http.get(path)).status_code == 502
    await until(lambda: breakers(project))

    answer = await project.develop.http.get(path)

    assert answer.status_code == 503
    assert "retry-after" in answer.headers
    assert "cpu" not in answer.text


async def test_a_trial_that_kills_opens_for_twice_as_long(
    project: Project, clock: AheadClock
) -> None:
    """And an operator can end it by hand at any time."""
    name = await deploy(project)
    first = await opened(project, name)

    clock.ahead_ms += BAD_MS
    assert (await invoke(project, name, "kill")).status_code == 502

    (second,) = await until(lambda: _opened_again(project, first))
    waits_ms = parse_time(second["until"]) - clock()
    assert open_ms(2) - 10_000 < waits_ms <= open_ms(2)
    assert (await invoke(project, name, "fine")).status_code == 503
    closed = await project.operate.ok("POST", f"/v1/breakers/{first['id']}/close")
    assert closed == {"id": first["id"], "state": "closed"}
    assert (await invoke(project, name, "fine")).status_code == 200
    await project.operate.refused(404, "POST", f"/v1/breakers/{first['id']}/close")
    await project.operate.refused(404, "GET", f"/v1/breakers/{first['id']}")


async def test_queued_runs_of_a_held_back_function_wait_and_run_once(
    project: Project, clock: AheadClock
) -> None:
    """They are no dead letters, and use up no attempt."""
    name = await deploy(project)
    await opened(project, name)
    waiting = [await queued(project, name, number) for number in range(30)]
    job = await project.develop.ok("POST", "/v1/jobs", {"function": name, "payload": "work"})

    await until(lambda: _all_put_back(project))
    states = {run["id"]: run["status"] for run in await _runs(project, name, status="queued")}
    assert states.keys() >= set(waiting)

    clock.ahead_ms += BAD_MS
    runs = [await ended(project, run) for run in waiting]
    assert [run["status"] for run in runs] == ["succeeded"] * 30
    assert [run["attempt"] for run in runs] == [1] * 30
    found = await project.develop.ok("GET", f"/v1/jobs/{job['id']}?wait=20")
    assert (found["status"], found["attempts"]) == ("succeeded", 1)
    assert len(await _runs(project, name, status="succeeded")) == 31


async def _all_put_back(project: Project) -> bool:
    return project.platform.backlog.count == 0


IN_ORDER = """export default {
  job(given) { if (given === 'kill') for (;;); },
  async afterStore(event, env) {
    const seen = (await env.KV.get("seen")) ?? [];
    await env.KV.put("seen", [...seen, event.data.values[0].value]);
  },
}"""


async def test_runs_in_order_keep_it_while_one_of_two_versions_waits(project: Project) -> None:
    """One version is held back, the other is not: what comes later does not overtake in that."""
    name = await deploy(project, IN_ORDER.replace("'kill'", "'never'"))
    device = (await project.device())["id"]
    body = {"function": name, "product": "thermometer", "order": "device"}
    await project.develop.ok("POST", "/v1/triggers", body)
    version = {"source": IN_ORDER, "limits": SHORT}
    await project.develop.ok("POST", f"/v1/functions/{name}/versions", version)
    halves = [{"version": 1, "percent": 50}, {"version": 2, "percent": 50}]
    path = f"/v1/functions/{name}"
    await project.develop.ok("POST", f"{path}/deployments", {"versions": halves})
    while not (held := await breakers(project)):  # half of these come to the other version
        await project.develop.call("POST", f"{path}/invoke?handler=job", "kill")
    scene = Plant(project, name, [device])

    for number in range(20):
        await scene.write(device, number)
    await until(lambda: _all_put_back(project))
    assert await scene.runs(status="queued")  # all behind the first that the version has
    await project.operate.ok("POST", f"/v1/breakers/{held[0]['id']}/close")
    await scene.settled()

    assert await project.operate.ok("GET", "/v1/kv/default/seen") == list(range(20))


async def test_runs_in_order_keep_it_while_they_wait(project: Project) -> None:
    """A device's runs that come one after another do so when the function is let in again."""
    name = await deploy(project, IN_ORDER)
    device = (await project.device())["id"]
    body = {"function": name, "product": "thermometer", "order": "device"}
    await project.develop.ok("POST", "/v1/triggers", body)
    for _ in range(HARM_MAX):
        path = f"/v1/functions/{name}/invoke?handler=job"
        await project.develop.refused(502, "POST", path, "kill")
    (breaker,) = await until(lambda: breakers(project))
    scene = Plant(project, name, [device])

    for number in range(10):
        await scene.write(device, number)
    await until(lambda: _all_put_back(project))
    await project.operate.ok("POST", f"/v1/breakers/{breaker['id']}/close")
    await scene.settled()

    assert await project.operate.ok("GET", "/v1/kv/default/seen") == list(range(10))


async def test_messages_of_a_batch_wait_and_come_once(project: Project) -> None:
    """A batch that is held is put back message by message, and gathered anew."""
    source = """export default {
      job() { for (;;); },
      async queue(batch, env) {
        for (const one of batch.messages) await env.KV.put(`${one.body}-${one.attempts}`, true);
      },
    }"""
    name = await deploy(project, source)
    for _ in range(HARM_MAX):
        await project.develop.refused(502, "POST", f"/v1/functions/{name}/invoke?handler=job", 1)
    (breaker,) = await until(lambda: breakers(project))

    jobs = [{"function": name, "handler": "queue", "payload": number} for number in range(12)]
    await project.develop.ok("POST", "/v1/jobs", jobs)
    await until(lambda: _all_put_back(project))
    assert await project.develop.items("/v1/jobs", status="succeeded") == []
    await project.operate.ok("POST", f"/v1/breakers/{breaker['id']}/close")

    async def all_done() -> bool:
        return len(await project.develop.items("/v1/jobs", status="succeeded")) == len(jobs)

    await until(all_done)
    kept = (await project.operate.ok("GET", "/v1/kv/default"))["items"]
    assert {one["key"] for one in kept} == {f"{number}-1" for number in range(12)}


async def _runs(project: Project, name: str, **query: Any) -> list[dict[str, Any]]:
    return await project.develop.items("/v1/executions", function=name, **query)


async def test_a_backlog_of_killers_is_stopped_at_the_fifth(
    project: Project, clock: AheadClock
) -> None:
    """What waits in the node's memory when the breaker opens does not run on: it is put back."""
    name = await deploy(project)

    runs = [await queued(project, name, "kill") for _ in range(25)]
    await until(lambda: breakers(project))
    await until(lambda: _none_runs(project, name))

    killed = await _runs(project, name, status="cpu_exceeded")
    left = await _runs(project, name, status="queued")
    assert HARM_MAX <= len(killed) <= HARM_MAX + 4
    assert len(killed) + len(left) == len(runs)
    await project.develop.ok(
        "POST", "/v1/executions:bulk", {"action": "cancel", "filter": {"function": name}}
    )
    clock.ahead_ms += QUARANTINE_MS


async def _none_runs(project: Project, name: str) -> bool:
    return not await _runs(project, name, status="running")


async def test_another_version_has_a_clean_slate(project: Project) -> None:
    """Whoever mends the function need not wait, nor ask anybody; what waited runs at once."""
    name = await deploy(project)
    await opened(project, name)
    waiting = await queued(project, name, "old")
    assert (await invoke(project, name, "fine")).status_code == 503

    body = {"source": KILLS + "// mended"}
    await project.develop.ok("POST", f"/v1/functions/{name}/versions?deploy=true", body)

    assert (await invoke(project, name, "fine")).status_code == 200
    assert (await ended(project, waiting))["status"] == "succeeded"
    assert await breakers(project) == []


async def test_a_schedule_skips_its_turn_and_says_why(project: Project) -> None:
    """What a clock repeats is not kept for later."""
    name = await deploy(project)
    await opened(project, name)
    body = {"function": name, "every": "1h", "payload": "tick"}
    schedule = await project.develop.ok("POST", "/v1/schedules", body)

    fired = await project.develop.ok("POST", f"/v1/schedules/{schedule['id']}/trigger", {})

    run = await ended(project, fired["execution_id"])
    assert run["status"] == "skipped"
    assert run["error"]["reason"] == "breaker_open"
    assert await project.develop.items("/v1/dead-letters") == []


async def test_a_function_that_throws_is_never_held_back(project: Project) -> None:
    """Errors that cost nothing but themselves are shown to who asks, however many."""
    source = "export default { async job() { throw new Error('no') } }"
    name = await deploy(project, source)

    answers = [await invoke(project, name, 1) for _ in range(4 * HARM_MAX)]

    assert {answer.json()["code"] for answer in answers} == {"function_error"}
    assert await breakers(project) == []


async def test_another_project_sees_and_ends_none_of_it(
    project: Project, neighbour: Project
) -> None:
    """Breakers are a project's own."""
    breaker = await opened(project, await deploy(project))

    assert await breakers(neighbour) == []
    path = f"/v1/breakers/{breaker['id']}"
    await neighbour.operate.refused(404, "GET", path)
    await neighbour.operate.refused(404, "POST", f"{path}/close")
    assert await breakers(project) == [breaker]


async def test_breakers_are_counted_and_told_to_who_watches(project: Project) -> None:
    """Metrics have them by state and scope; the function's live tail has a line."""
    name = await deploy(project)
    function = await project.develop.ok("GET", f"/v1/functions/{name}")
    lines = aiter(project.platform.tails.subscribe(function["id"]))
    heard = asyncio.create_task(_opening_line(lines))

    breaker = await opened(project, name)

    assert breaker["id"] in await asyncio.wait_for(heard, 10)
    metrics = (await project.admin.call("GET", "/metrics")).text
    assert 'cloudcode_breakers{state="open"}' in metrics
    assert 'cloudcode_breakers_opened_total{scope="function"}' in metrics


async def _opening_line(lines: AsyncIterator[dict[str, Any]]) -> str:
    async for item in lines:
        if "breaker_opened" in item.get("msg", ""):
            return str(item["msg"])
    return ""
