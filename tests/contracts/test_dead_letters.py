"""Dead letters over HTTP: seen, edited, redriven, thrown away; one, or all of a filter."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import asyncio
import itertools
from typing import Any

import pytest

from engine.clock import iso
from engine.quotas import PARAMS_BYTES_MAX
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
SOON = {"kind": "fixed", "base_seconds": 0.01}
FAILS = """export default {
  job(given, env, ctx) {
    if (given === "fail") throw new TypeError(`attempt ${ctx.attempt}`);
    return { given, attempt: ctx.attempt };
  },
}"""
_numbers = itertools.count(1)


async def deploy(project: Project, source: str = FAILS, **fields: Any) -> str:
    name = f"dead-{next(_numbers)}"
    await project.function(name, source, **{"limits": CALM} | fields)
    return name


async def letters(project: Project, **query: Any) -> list[dict[str, Any]]:
    return await project.develop.items("/v1/dead-letters", **query)


async def dead(project: Project, function: str, count: int = 1, **fields: Any) -> list[str]:
    """Let jobs fail for good, and return the ids of their dead letters, oldest first."""
    known = {letter["id"] for letter in await letters(project)}
    body = {"function": function, "payload": "fail", "max_attempts": 1, "backoff": SOON} | fields
    await project.develop.ok("POST", "/v1/jobs", [body] * count)
    return [letter["id"] for letter in reversed(await fallen(project, known, count))]


async def fallen(project: Project, known: set[str], count: int) -> list[dict[str, Any]]:
    """Wait for so many new dead letters."""
    async with asyncio.timeout(20):
        while True:
            new = [letter for letter in await letters(project) if letter["id"] not in known]
            if len(new) >= count:
                return new
            await asyncio.sleep(0.02)


async def end_of(project: Project, job_id: str) -> Any:
    async with asyncio.timeout(20):
        while True:
            job = await project.develop.ok("GET", f"/v1/jobs/{job_id}?wait=20")
            if job["status"] not in {"queued", "running"}:
                return job


# Seen.


async def test_a_dead_letter_shows_what_went_wrong(project: Project) -> None:
    """What the run got, its error, and every attempt with its own."""
    name = await deploy(project)

    (letter_id,) = await dead(project, name, max_attempts=2, queue="images")

    letter = await project.develop.ok("GET", f"/v1/dead-letters/{letter_id}")
    (job,) = await project.develop.items("/v1/jobs")
    assert (letter["function"], letter["handler"], letter["cause"]) == (name, "job", "job")
    assert (letter["queue"], letter["status"], letter["attempts"]) == ("images", "failed", 2)
    assert (letter["payload"], letter["job_id"]) == ("fail", job["id"])
    assert (letter["error"]["name"], letter["error"]["message"]) == ("TypeError", "attempt 2")
    assert [one["attempt"] for one in letter["attempts_log"]] == [1, 2]
    assert [one["error"]["message"] for one in letter["attempts_log"]] == ["attempt 1", "attempt 2"]
    assert letter["attempts_log"][-1]["id"] == letter["execution_id"] == job["execution_id"]


async def test_dead_letters_are_listed_by_what_they_are(project: Project) -> None:
    """Newest first, page by page."""
    name, other = await deploy(project), await deploy(project)
    first = await dead(project, name, queue="images")
    second = await dead(project, other, queue="images")
    third = await dead(project, name)

    async def ids(**query: Any) -> list[str]:
        return [letter["id"] for letter in await letters(project, **query)]

    assert await ids(limit=1) == [*third, *second, *first]
    assert await ids(function=name) == [*third, *first]
    assert await ids(queue="images") == [*second, *first]
    assert await ids(cause="job") == [*third, *second, *first]
    assert await ids(cause="write") == []
    assert await ids(since=iso(project.platform.clock() + 1_000)) == []
    problem = await project.develop.refused(422, "GET", "/v1/dead-letters?since=x")
    assert problem["errors"][0]["pointer"] == "?since"


async def test_a_dead_letter_is_its_projects_own(project: Project, neighbour: Project) -> None:
    """Another one can neither see nor change it, by its id or by a filter."""
    (letter_id,) = await dead(project, await deploy(project))
    path = f"/v1/dead-letters/{letter_id}"

    for method, where, body in (
        ("GET", path, None), ("PATCH", path, {"payload": 1}), ("DELETE", path, None),
        ("POST", f"{path}/redrive", None),
    ):  # fmt: skip
        problem = await neighbour.develop.refused(404, method, where, body)
        assert problem["code"] == "not_found"
    done = await neighbour.develop.ok("POST", "/v1/dead-letters:redrive", {"ids": [letter_id]})
    gone = await neighbour.develop.ok("DELETE", "/v1/dead-letters?all=true")

    assert (done["count"], gone["count"]) == (0, 0)
    assert [one["id"] for one in await letters(project)] == [letter_id]


# Redriven.


async def test_a_redriven_job_is_as_new(project: Project) -> None:
    """With another payload it succeeds: its attempts count anew, the letter is gone."""
    name = await deploy(project)
    (letter_id,) = await dead(project, name, max_attempts=2)
    path = f"/v1/dead-letters/{letter_id}"

    edited = await project.develop.ok("PATCH", path, {"payload": {"a": [1]}})
    answer = await project.develop.call("POST", f"{path}/redrive")
    (job,) = await project.develop.items("/v1/jobs")
    job = await end_of(project, job["id"])

    assert edited["payload"] == {"a": [1]}
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    execution_id = answer.json()["execution_id"]
    assert answer.headers["location"] == f"/v1/executions/{execution_id}"
    assert (job["status"], job["attempts"], job["error"]) == ("succeeded", 1, None)
    assert (job["payload"], job["result"]) == ({"a": [1]}, {"given": {"a": [1]}, "attempt": 1})
    assert [run["status"] for run in job["executions"]] == ["failed", "failed", "succeeded"]
    assert job["execution_id"] == execution_id
    assert await letters(project) == []
    await project.develop.refused(404, "POST", f"{path}/redrive")


async def test_what_fails_again_is_a_dead_letter_again(project: Project) -> None:
    """After as many attempts as the first time."""
    name = await deploy(project)
    (letter_id,) = await dead(project, name, max_attempts=2)

    await project.develop.ok("POST", f"/v1/dead-letters/{letter_id}/redrive")

    (again,) = await fallen(project, {letter_id}, 1)
    assert (again["attempts"], again["job_id"]) == (
        2,
        (await project.develop.items("/v1/jobs"))[0]["id"],
    )
    assert len(await project.develop.items("/v1/executions")) == 4


async def test_a_letter_is_redriven_once(project: Project) -> None:
    """However many ask for it at the same time: one run, one letter if it fails again."""
    name = await deploy(project)
    (letter_id,) = await dead(project, name)

    answers = await asyncio.gather(
        *(project.develop.call("POST", f"/v1/dead-letters/{letter_id}/redrive") for _ in range(8)),
        *(
            project.develop.call("POST", "/v1/dead-letters:redrive", {"filter": {}})
            for _ in range(4)
        ),
    )

    one_by_one = [answer.status_code for answer in answers[:8]]
    counts = [answer.json()["count"] for answer in answers[8:]]
    assert one_by_one.count(202) + sum(counts) == 1, (one_by_one, counts)
    assert set(one_by_one) <= {202, 404}
    await fallen(project, {letter_id}, 1)
    await project.settled()
    assert len(await project.develop.items("/v1/executions")) == 2


async def test_all_of_a_filter_are_redriven(project: Project) -> None:
    """A dry run counts them and changes nothing."""
    name, other = await deploy(project), await deploy(project)
    ids, others = await dead(project, name, 12), await dead(project, other, 2)
    body = {"filter": {"function": name, "queue": "default", "cause": "job"}}

    dry = await project.develop.ok("POST", "/v1/dead-letters:redrive", {**body, "dry_run": True})
    before = await letters(project)
    done = await project.develop.ok("POST", "/v1/dead-letters:redrive", body)

    assert (dry["dry_run"], dry["count"], dry["ids"], dry["executions"]) == (True, 12, ids[:10], [])
    assert len(before) == 14
    assert (done["dry_run"], done["count"], done["ids"]) == (False, 12, ids[:10])
    assert len(done["executions"]) == 10
    assert (done["skipped"], done["reasons"]) == (0, {})
    again = await fallen(project, {*ids, *others}, 12)
    assert {letter["function"] for letter in again} == {name}
    assert {letter["id"] for letter in await letters(project, function=other)} == set(others)


async def test_letters_are_redriven_by_their_ids(project: Project) -> None:
    """One that is not there is passed over; named twice it runs once."""
    name = await deploy(project)
    first, second, third = await dead(project, name, 3)
    ids = [third, "dlq_none", first, first]

    dry = await project.develop.ok(
        "POST", "/v1/dead-letters:redrive", {"ids": ids, "dry_run": True}
    )
    done = await project.develop.ok("POST", "/v1/dead-letters:redrive", {"ids": ids})

    assert (dry["count"], sorted(dry["ids"]), dry["executions"]) == (2, [first, third], [])
    assert (done["count"], sorted(done["ids"]), len(done["executions"])) == (2, [first, third], 2)
    assert second in {letter["id"] for letter in await letters(project)}


async def test_what_cannot_run_stays_a_dead_letter(project: Project) -> None:
    """The function, or its handler, is gone: the reason is told, the letter is kept."""
    deleted, changed = await deploy(project), await deploy(project)
    (of_deleted,), (of_changed,) = await dead(project, deleted), await dead(project, changed)
    await project.develop.ok("DELETE", f"/v1/functions/{deleted}")
    await project.develop.ok(
        "POST", f"/v1/functions/{changed}/versions?deploy=true",
        {"source": "export default { afterStore() {} }"},
    )  # fmt: skip

    problems = [
        await project.develop.refused(409, "POST", f"/v1/dead-letters/{one}/redrive")
        for one in (of_deleted, of_changed)
    ]
    done = await project.develop.ok("POST", "/v1/dead-letters:redrive", {"filter": {}})

    assert f"the function {deleted} was deleted" in problems[0]["detail"]
    assert f"version 2 of {changed} has no handler job" in problems[1]["detail"]
    assert (done["count"], done["skipped"]) == (0, 2)
    assert done["reasons"].keys() == {of_deleted, of_changed}
    assert len(await letters(project)) == 2
    assert [one["id"] for one in await letters(project, function=deleted)] == [of_deleted]


# Of a device's write.

ON_WRITE = """export default {
  afterStore(event, env, ctx) {
    const [{ value }] = event.data.values;
    if (value > 1) throw new Error(`attempt ${ctx.attempt}: ${value}`);
    return { value, device: event.deviceId };
  }
}"""


async def test_a_trigger_that_declares_retries_leaves_a_dead_letter(project: Project) -> None:
    """It shows what the handler got; redriven as it is, the run belongs to the event again."""
    retries = {"max_attempts": 2, "backoff": SOON}
    name = await deploy(project, ON_WRITE, retries=retries)
    device = await project.device()
    await project.develop.ok("POST", "/v1/triggers", {"function": name, "product": "thermometer"})
    written = await project.operate.ok(
        "POST", f"/v1/devices/{device['id']}/values", {"values": [{"key": "t", "value": 2}]}
    )

    (listed,) = await fallen(project, set(), 1)
    letter = await project.develop.ok("GET", f"/v1/dead-letters/{listed['id']}")
    await project.develop.ok("POST", f"/v1/dead-letters/{letter['id']}/redrive")
    (again,) = await fallen(project, {letter["id"]}, 1)
    again = await project.develop.ok("GET", f"/v1/dead-letters/{again['id']}")

    event_id = written["event_id"]
    assert (letter["cause"], letter["job_id"], letter["event_id"]) == ("write", None, event_id)
    assert letter["device_id"] == device["id"]
    assert letter["payload"]["deviceId"] == device["id"]
    assert letter["payload"]["data"]["values"][0]["value"] == 2
    assert [one["attempt"] for one in letter["attempts_log"]] == [1, 2]
    assert letter["attempts_log"][0]["id"] == written["executions"][0]
    assert (again["payload"], again["event_id"]) == (letter["payload"], event_id)


async def test_a_devices_write_can_be_edited(project: Project) -> None:
    """The handler gets what was put in its place."""
    name = await deploy(project, ON_WRITE, retries={"max_attempts": 2, "backoff": SOON})
    device = await project.device()
    await project.develop.ok("POST", "/v1/triggers", {"function": name, "product": "thermometer"})
    await project.operate.ok(
        "POST", f"/v1/devices/{device['id']}/values", {"values": [{"key": "t", "value": 2}]}
    )
    (listed,) = await fallen(project, set(), 1)
    path = f"/v1/dead-letters/{listed['id']}"
    payload = (await project.develop.ok("GET", path))["payload"]
    payload["data"]["values"][0]["value"] = 1

    await project.develop.ok("PATCH", path, {"payload": payload})
    redriven = await project.develop.ok("POST", f"{path}/redrive")
    await project.settled()

    run = await project.develop.ok("GET", f"/v1/executions/{redriven['execution_id']}")
    assert (run["status"], run["input"]) == ("succeeded", payload)
    assert run["result"] == {"value": 1, "device": device["id"]}
    assert (run["cause"], run["device_id"]) == ("write", device["id"])


# Thrown away.


async def test_one_letter_is_thrown_away(project: Project) -> None:
    """Its job stays as it ended."""
    (letter_id,) = await dead(project, await deploy(project))

    await project.develop.ok("DELETE", f"/v1/dead-letters/{letter_id}")

    await project.develop.refused(404, "DELETE", f"/v1/dead-letters/{letter_id}")
    assert await letters(project) == []
    (job,) = await project.develop.items("/v1/jobs")
    assert job["status"] == "dead_lettered"


async def test_all_of_a_filter_are_thrown_away(project: Project) -> None:
    """A dry run counts them and changes nothing; without a filter, only if `all` says so."""
    name, other = await deploy(project), await deploy(project)
    ids, others = await dead(project, name, 12), await dead(project, other)
    where = f"/v1/dead-letters?function={name}"

    problem = await project.develop.refused(422, "DELETE", "/v1/dead-letters?dry_run=true")
    mistyped = await project.develop.refused(422, "DELETE", f"{where}&dryrun=true")
    dry = await project.develop.ok("DELETE", f"{where}&dry_run=true")
    before = await letters(project)
    done = await project.develop.ok("DELETE", where)
    rest = await letters(project)
    last = await project.develop.ok("DELETE", "/v1/dead-letters?all=true")

    assert problem["errors"][0]["pointer"] == "?all"
    assert mistyped["errors"][0]["pointer"] == "?dryrun"
    assert (dry["dry_run"], dry["count"], dry["ids"], len(before)) == (True, 12, ids[:10], 13)
    assert (done["dry_run"], done["count"]) == (False, 12)
    assert [letter["id"] for letter in rest] == others
    assert (last["count"], await letters(project)) == (1, [])


# Refused.

WRONG_REDRIVES = {
    "nothing": ({}, "/ids"),
    "ids and a filter": ({"ids": [], "filter": {}}, "/ids"),
    "no ids": ({"ids": []}, "/ids"),
    "too many ids": ({"ids": [f"dlq_{n}" for n in range(1_001)]}, "/ids"),
    "ids of numbers": ({"ids": [1]}, "/ids/0"),
    "another filter": ({"filter": {"status": "failed"}}, "/filter/status"),
    "no time": ({"filter": {"since": "x"}}, "/filter/since"),
    "a dry run of text": ({"filter": {}, "dry_run": "yes"}, "/dry_run"),
}


@pytest.mark.parametrize("case", WRONG_REDRIVES)
async def test_a_wrong_redrive_is_refused_with_its_field(shared: Project, case: str) -> None:
    """Nothing is done."""
    body, pointer = WRONG_REDRIVES[case]

    problem = await shared.develop.refused(422, "POST", "/v1/dead-letters:redrive", body)

    assert problem["errors"][0]["pointer"] == pointer, problem


async def test_a_wrong_payload_is_refused(project: Project) -> None:
    """The letter keeps the one it has."""
    (letter_id,) = await dead(project, await deploy(project))
    path = f"/v1/dead-letters/{letter_id}"

    for content, status in (
        (b"", 400), (b"{", 400), (b"5", 422), (b"{}", 422), (b'{"payload":1,"a":1}', 422),
        (b'{"payload":%b}' % (b"[" * 201 + b"]" * 201), 422),
        (b'{"payload":"%b"}' % (b"a" * PARAMS_BYTES_MAX), 413),
    ):  # fmt: skip
        await project.develop.refused(status, "PATCH", path, content=content)

    assert (await project.develop.ok("GET", path))["payload"] == "fail"
