"""What a version declares for its queued runs, over HTTP: said, shown, and kept to."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

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
# Waits for as long as it is told; one that shall fail does so before.
WAITS = """
const work = async (given, ctx) => {
  if (given?.failUntil > ctx.attempt) throw new Error(`attempt ${ctx.attempt}`);
  await new Promise((done) => setTimeout(done, given?.ms ?? 150));
  return given;
};
export default {
  job: (given, env, ctx) => work(given, ctx),
  afterStore: (event, env, ctx) => work(event.data.values[0].value, ctx),
};
"""
QUEUE = "export default { async queue(batch) {} }"
_numbers = itertools.count(1)


async def deploy(project: Project, source: str = WAITS, **fields: Any) -> str:
    name = f"flow-{next(_numbers)}"
    await project.function(name, source, **{"limits": CALM} | fields)
    return name


async def shown(project: Project, name: str) -> Any:
    return await project.develop.ok("GET", f"/v1/functions/{name}")


async def make(project: Project, function: str, *payloads: Any, **fields: Any) -> list[str]:
    """Make a job of each payload, in one call, and return their ids."""
    body = [{"function": function, "payload": payload, **fields} for payload in payloads]
    answer = await project.develop.ok("POST", "/v1/jobs", body)
    return [item["id"] for item in answer["items"]]


async def until(question: Callable[[], Any]) -> Any:
    """Return the first true answer to a question that is asked over HTTP."""
    async with asyncio.timeout(30):
        while not (answer := await question()):
            await asyncio.sleep(0.02)
    return answer


async def end_of(project: Project, job_id: str) -> Any:
    async def ended() -> Any:
        job = await project.develop.ok("GET", f"/v1/jobs/{job_id}?wait=20")
        return None if job["status"] in {"queued", "running"} else job

    return await until(ended)


async def ends_of(project: Project, ids: list[str]) -> list[Any]:
    return [await end_of(project, job_id) for job_id in ids]


async def runs_of(project: Project, function: str, count: int) -> list[Any]:
    """Return the runs of a function once there are so many and all have ended, oldest first."""

    async def ended() -> Any:
        items = await project.develop.items("/v1/executions", function=function)
        waits = any(item["status"] in {"queued", "running"} for item in items)
        return None if waits or len(items) < count else items

    ids = sorted(run["id"] for run in await until(ended))
    return [await project.develop.ok("GET", f"/v1/executions/{run_id}") for run_id in ids]


def spans(runs: list[Any]) -> list[tuple[float, float]]:
    """Return when each run was at work: its start and its end, in ms."""
    begun = [datetime.fromisoformat(run["clock"]).timestamp() * 1000 for run in runs]
    return [(at, at + run["wall_ms"]) for at, run in zip(begun, runs, strict=True)]


def most_at_once(runs: list[Any]) -> int:
    """Return how many were at work beside each other, short overlaps by a clock's step aside."""
    surely = [(begin, max(begin + 1, end - 10)) for begin, end in spans(runs)]
    return max(sum(begin <= at < end for begin, end in surely) for at, _ in surely)


# What is declared.


WHOLE: dict[str, Any] = {
    "retries": {"max_attempts": 5, "backoff": {"kind": "fixed", "base_seconds": 2}},
    "flow": {
        "concurrency": {"limit": 3, "key": "payload.user"},
        "throttle": {"limit": 10, "period": "1m", "burst": 5},
        "rateLimit": {"limit": 100, "period": 3600, "key": "'all'"},
        "debounce": {"period": "30s", "key": "event.deviceId", "timeout": "5m"},
    },
    "queue": {"max_batch_size": 50, "max_batch_timeout": "5s", "max_concurrency": 2},
}
SHOWN: dict[str, Any] = {
    "retries": {
        "max_attempts": 5,
        "backoff": {"kind": "fixed", "base_seconds": 2.0, "cap_seconds": 3600.0},
    },
    "flow": {
        "concurrency": {"limit": 3, "key": "payload.user", "scope": "function"},
        "throttle": {"limit": 10, "period": "1m", "burst": 5, "key": None},
        "rate_limit": {"limit": 100, "period": "1h", "key": "'all'"},
        "debounce": {"period": "30s", "timeout": "5m", "key": "event.deviceId"},
    },
    "queue": {"max_batch_size": 50, "max_batch_timeout": 5.0, "max_concurrency": 2},
}


async def test_what_was_declared_is_shown(project: Project) -> None:
    """With what was left out; and what is shown can be sent again."""
    name = await deploy(project, QUEUE, **WHOLE)

    first = await shown(project, name)
    version = {"source": QUEUE, **{part: first[part] for part in WHOLE}}
    await project.develop.ok("POST", f"/v1/functions/{name}/versions", version)
    second = await project.develop.ok("GET", f"/v1/functions/{name}/versions/2")

    assert {part: first[part] for part in WHOLE} == SHOWN
    assert {part: second[part] for part in WHOLE} == SHOWN


async def test_a_part_that_is_left_out_is_the_latest_versions(project: Project) -> None:
    """An empty one takes it away; `queue` goes with its handler."""
    name = await deploy(project, QUEUE, **WHOLE)

    path = f"/v1/functions/{name}/versions"
    await project.develop.ok("POST", path, {"source": QUEUE, "flow": {}})
    second = await shown(project, name)
    await project.develop.ok("POST", path, {"source": WAITS, "retries": {}})
    third = await shown(project, name)

    assert {part: second[part] for part in WHOLE} == SHOWN | {"flow": None}
    assert {part: third[part] for part in WHOLE} == dict.fromkeys(WHOLE)


async def test_what_is_not_declared_is_null(project: Project) -> None:
    """A version without any of it."""
    name = await deploy(project)

    assert {part: (await shown(project, name))[part] for part in WHOLE} == dict.fromkeys(WHOLE)


async def test_queues_names_of_retries_are_retries(project: Project) -> None:
    """`max_retries` counts those after the first attempt."""
    name = await deploy(project, QUEUE, queue={"max_retries": 4, "retry_delay": 30})

    retries = (await shown(project, name))["retries"]

    assert (retries["max_attempts"], retries["backoff"]["kind"]) == (5, "fixed")
    assert retries["backoff"]["base_seconds"] == 30


def flow(**parts: Any) -> dict[str, Any]:
    return {"flow": parts}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no attempt": ({"retries": {"max_attempts": 0}}, "/retries/max_attempts"),
    "many attempts": ({"retries": {"max_attempts": 101}}, "/retries/max_attempts"),
    "attempts of text": ({"retries": {"max_attempts": "3"}}, "/retries/max_attempts"),
    "another backoff": ({"retries": {"backoff": {"kind": "linear"}}}, "/retries/backoff/kind"),
    "no wait": ({"retries": {"backoff": {"base_seconds": 0}}}, "/retries/backoff/base_seconds"),
    "unknown part": ({"retries": {"times": 3}}, "/retries/times"),
    "no limit": (flow(concurrency={}), "/flow/concurrency/limit"),
    "a limit of none": (flow(concurrency={"limit": 0}), "/flow/concurrency/limit"),
    "a limit of too many": (flow(concurrency={"limit": 1001}), "/flow/concurrency/limit"),
    "another scope": (flow(concurrency={"limit": 1, "scope": "env"}), "/flow/concurrency/scope"),
    "an empty key": (flow(concurrency={"limit": 1, "key": ""}), "/flow/concurrency/key"),
    "a long key": (flow(concurrency={"limit": 1, "key": "k" * 201}), "/flow/concurrency/key"),
    "an empty part": (flow(concurrency={"limit": 1, "key": "a..b"}), "/flow/concurrency/key"),
    "an open quote": (flow(singleton={"key": "'x"}), "/flow/singleton/key"),
    "a quote alone": (flow(debounce={"period": 1, "key": "'"}), "/flow/debounce/key"),
    "both": (flow(concurrency={"limit": 1}, singleton={}), "/flow/singleton"),
    "no period": (flow(throttle={"limit": 1}), "/flow/throttle/period"),
    "a period of none": (flow(throttle={"limit": 1, "period": 0}), "/flow/throttle/period"),
    "a long period": (flow(throttle={"limit": 1, "period": "8d"}), "/flow/throttle/period"),
    "an odd period": (flow(throttle={"limit": 1, "period": "soon"}), "/flow/throttle/period"),
    "too quick": (flow(throttle={"limit": 1001, "period": 1}), "/flow/throttle/limit"),
    "a large burst": (flow(throttle={"limit": 2, "period": 1, "burst": 3}), "/flow/throttle/burst"),
    "no rate": (flow(rate_limit={"limit": 0, "period": 1}), "/flow/rate_limit/limit"),
    "no quiet": (flow(debounce={"period": 0}), "/flow/debounce/period"),
    "an early timeout": (flow(debounce={"period": 5, "timeout": 4}), "/flow/debounce/timeout"),
    "another mode": (flow(singleton={"mode": "wait"}), "/flow/singleton/mode"),
    "an unknown gate": (flow(priority={}), "/flow/priority"),
    "no handler": ({"queue": {}, "source": WAITS}, "/queue"),
    "a batch of none": ({"queue": {"max_batch_size": 0}}, "/queue/max_batch_size"),
    "a large batch": ({"queue": {"max_batch_size": 101}}, "/queue/max_batch_size"),
    "a long wait": ({"queue": {"max_batch_timeout": 61}}, "/queue/max_batch_timeout"),
    "many retries": ({"queue": {"max_retries": 100}}, "/queue/max_retries"),
    "a long delay": ({"queue": {"retry_delay": "2d"}}, "/queue/retry_delay"),
    "no batch at a time": ({"queue": {"max_concurrency": 0}}, "/queue/max_concurrency"),
    "said twice": ({"queue": {"max_retries": 1}, "retries": {"max_attempts": 2}},
                   "/queue/max_retries"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
async def test_a_wrong_declaration_is_refused_with_its_field(shared: Project, case: str) -> None:
    """Nothing of it is stored; the words say what there may be."""
    fields, pointer = WRONG[case]
    body = {"name": "wrong", "source": QUEUE, **fields}

    problem = await shared.develop.refused(422, "POST", "/v1/functions", body)

    assert [error["pointer"] for error in problem["errors"]] == [pointer]
    assert len(problem["errors"][0]["message"]) > 5
    await shared.develop.refused(404, "GET", "/v1/functions/wrong")


# Limits.


async def test_no_more_runs_than_the_limit_are_at_work(project: Project) -> None:
    """Of each value of the key; the others wait, and all of them run."""
    limits = {"concurrency": {"limit": 2, "key": "payload.user"}}
    name = await deploy(project, flow=limits)

    ids = await make(project, name, *({"user": user, "ms": 300} for user in "aaaaaabb"))
    jobs = await ends_of(project, ids)

    assert [job["status"] for job in jobs] == ["succeeded"] * 8
    runs = {run["job_id"]: run for run in await runs_of(project, name, 8)}
    of_a = [runs[job_id] for job_id in ids[:6]]
    assert most_at_once(of_a) == 2


async def test_functions_share_a_limit_of_their_project(project: Project) -> None:
    """By a word that is the same in both."""
    limits = {"concurrency": {"limit": 1, "key": "'printer'", "scope": "project"}}
    names = [await deploy(project, flow=limits) for _ in range(2)]

    made = [await make(project, name, *([{"ms": 60}] * 3)) for name in names]
    await ends_of(project, [job_id for ids in made for job_id in ids])

    runs = [run for name in names for run in await runs_of(project, name, 3)]
    assert most_at_once(runs) == 1


async def test_throttled_runs_begin_one_after_another(project: Project) -> None:
    """Ten a second: none begins before its place."""
    name = await deploy(project, flow={"throttle": {"limit": 10, "period": 1}})

    ids = await make(project, name, *([{"ms": 1}] * 5))
    await ends_of(project, ids)

    begins = sorted(begin for begin, _ in spans(await runs_of(project, name, 5)))
    assert begins[4] - begins[0] >= 380  # 400 but for the clocks' steps


async def test_what_a_rate_limit_refuses_is_skipped(project: Project) -> None:
    """The record says so, and the job."""
    name = await deploy(project, flow={"rate_limit": {"limit": 2, "period": "1h"}})

    jobs = await ends_of(project, await make(project, name, *([{"ms": 1}] * 4)))

    assert [job["status"] for job in jobs] == ["succeeded"] * 2 + ["skipped"] * 2
    assert {job["error"]["reason"] for job in jobs[2:]} == {"rate_limited"}
    assert await project.develop.items("/v1/dead-letters") == []


async def test_only_the_last_of_a_burst_runs(project: Project) -> None:
    """The others are skipped, each with the run that took its place."""
    name = await deploy(project, flow={"debounce": {"period": 0.3}})

    jobs = await ends_of(project, await make(project, name, *({"n": at, "ms": 1} for at in "abc")))

    assert [job["status"] for job in jobs] == ["skipped", "skipped", "succeeded"]
    assert jobs[2]["result"] == {"n": "c", "ms": 1}
    assert jobs[0]["error"]["reason"] == "debounced"
    assert jobs[2]["execution_id"] in jobs[0]["error"]["message"]


async def test_a_singleton_skips_others_while_it_runs(project: Project) -> None:
    """Those of another key run."""
    name = await deploy(project, flow={"singleton": {"key": "payload.k"}})

    ids = await make(project, name, {"k": 1, "ms": 400}, {"k": 1}, {"k": 2, "ms": 1})
    jobs = await ends_of(project, ids)

    assert [job["status"] for job in jobs] == ["succeeded", "skipped", "succeeded"]
    assert jobs[1]["error"]["reason"] == "singleton"


async def test_a_singleton_that_cancels_gives_way(project: Project) -> None:
    """The one that runs ends as cancelled when another one comes."""
    name = await deploy(project, flow={"singleton": {"mode": "cancel"}})

    (first,) = await make(project, name, {"ms": 15_000})

    async def runs() -> bool:
        job = await project.develop.ok("GET", f"/v1/jobs/{first}")
        return job["status"] == "running"

    await until(runs)
    (second,) = await make(project, name, {"ms": 1})
    jobs = await ends_of(project, [first, second])

    assert [job["status"] for job in jobs] == ["cancelled", "succeeded"]


CALLS = """export default { async job(given, env) {
  for (let i = 0; i < 3; i++) await env.FN.call(given.name, { ms: 1 });
} }"""


async def test_a_limit_holds_whoever_queues_the_run(project: Project) -> None:
    """A device's write, a function that calls another, and a call that nobody waits for."""
    once = {"rate_limit": {"limit": 1, "period": "1h"}}
    names = [await deploy(project, flow=once) for _ in range(3)]
    device = await project.device()
    await project.develop.ok(
        "POST", "/v1/triggers", {"function": names[0], "product": "thermometer"}
    )

    values = {"values": [{"key": "t", "value": {"ms": 1}}]}
    for _ in range(3):
        await project.operate.ok("POST", f"/v1/devices/{device['id']}/values", values)
    caller = await deploy(project, CALLS)
    await make(project, caller, {"name": names[1]})
    for _ in range(3):
        path = f"/v1/functions/{names[2]}/invoke?handler=job"
        headers = {"Prefer": "respond-async"}
        await project.develop.ok("POST", path, {"ms": 1}, headers=headers)

    for name in names:
        runs = await runs_of(project, name, 3)
        assert Counter(run["status"] for run in runs) == {"succeeded": 1, "skipped": 2}, name


# Order.


async def write(project: Project, device: Any, at: str, **value: Any) -> None:
    values = [{"key": "t", "value": value, "datetime": at}]
    await project.operate.ok("POST", f"/v1/devices/{device['id']}/values", {"values": values})


def moment(second: int) -> str:
    return f"2026-01-01T00:00:{second:02}.000Z"


async def bind(project: Project, function: str, **fields: Any) -> Any:
    body = {"function": function, "product": "thermometer", "order": "device", **fields}
    return await project.develop.ok("POST", "/v1/triggers", body)


async def written(project: Project, function: str, count: int) -> list[int]:
    """Return what the runs were about that succeeded, in the order in which they began."""
    good = [run for run in await runs_of(project, function, count) if run["status"] == "succeeded"]
    assert most_at_once(good) == 1
    return [run["result"]["n"] for run in sorted(good, key=lambda run: run["clock"])]


async def test_runs_of_a_device_come_in_turn(project: Project) -> None:
    """One after another, in the order of its values; another device does not wait for it."""
    name = await deploy(project)
    device, other = await project.device(), await project.device(name="two")
    trigger = await bind(project, name)

    for second in range(6):
        await write(project, device, moment(second), n=second, ms=30)
    await write(project, other, moment(0), n=99, ms=1)

    runs = await runs_of(project, name, 7)
    of_device = [run for run in runs if run["device_id"] == device["id"]]
    assert most_at_once(of_device) == 1
    assert sorted(of_device, key=lambda run: run["clock"]) == of_device
    assert (trigger["order"], trigger["lateness_seconds"]) == ("device", 0)


async def test_a_late_value_is_put_in_its_place(project: Project) -> None:
    """Within the window it runs by its own time, not by when it came."""
    name = await deploy(project)
    device = await project.device()
    trigger = await bind(project, name, lateness_seconds=1)

    for second in (5, 3, 4, 1, 2):
        await write(project, device, moment(second), n=second, ms=1)

    assert trigger["lateness_seconds"] == 1
    assert await written(project, name, 5) == [1, 2, 3, 4, 5]


async def test_a_run_that_is_tried_again_keeps_its_turn(project: Project) -> None:
    """What comes after it waits until it has succeeded, or has no attempt left."""
    backoff = {"kind": "fixed", "base_seconds": 0.2}
    name = await deploy(project, retries={"max_attempts": 3, "backoff": backoff})
    device = await project.device()
    await bind(project, name)

    for second, failures in enumerate((0, 3, 0, 9, 0)):
        await write(project, device, moment(second), n=second, ms=1, failUntil=failures)

    assert await written(project, name, 9) == [0, 1, 2, 4]
    (letter,) = await project.develop.items("/v1/dead-letters")
    assert letter["error"]["message"] == "attempt 3"


WRONG_ORDER: dict[str, tuple[dict[str, Any], str]] = {
    "another order": ({"order": "product"}, "/order"),
    "no order": ({"order": None, "lateness_seconds": 1}, "/lateness_seconds"),
    "too long": ({"lateness_seconds": 3601}, "/lateness_seconds"),
    "negative": ({"lateness_seconds": -1}, "/lateness_seconds"),
}


@pytest.mark.parametrize("case", WRONG_ORDER)
async def test_a_wrong_order_is_refused_with_its_field(shared: Project, case: str) -> None:
    """No trigger is made."""
    fields, pointer = WRONG_ORDER[case]
    body = {"function": "echo", "product": "thermometer", "order": "device", **fields}

    problem = await shared.develop.refused(422, "POST", "/v1/triggers", body)

    assert [error["pointer"] for error in problem["errors"]] == [pointer]


async def test_order_and_another_limit_exclude_each_other(project: Project) -> None:
    """A run waits in one line: whichever of the two comes second is refused."""
    limits: dict[str, Any] = {"concurrency": {"limit": 2}}
    limited, plain = await deploy(project, flow=limits), await deploy(project)
    await project.device()
    await bind(project, plain)

    body = {"function": limited, "product": "thermometer", "order": "device"}
    trigger = await project.develop.refused(422, "POST", "/v1/triggers", body)
    path = f"/v1/functions/{plain}/versions?deploy=true"
    version = {"source": WAITS, "flow": limits}
    deployed = await project.develop.refused(422, "POST", path, version)

    assert trigger["errors"][0]["pointer"] == "/order"
    assert deployed["errors"][0]["pointer"] == "/versions"
    assert len((await project.develop.ok("GET", f"/v1/functions/{plain}/versions"))["items"]) == 1
