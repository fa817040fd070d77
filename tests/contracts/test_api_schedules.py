"""`/v1/schedules`: what callers send and are told, and runs that come of it. Names begin with `s-`.

Which due time becomes which run, under a moved clock: test_schedules.
"""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import asyncio
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

TELL = "export default { async scheduled(event) { return event; } }"
FAIL = 'export default { async scheduled() { throw new Error("no"); } }'
DAILY = {"function": "s-tell", "cron": "30 2 * * *", "timezone": "Europe/Madrid"}
UNTIL_S = 20


async def schedule(project: Project, **fields: Any) -> Any:
    if (await project.develop.call("GET", "/v1/functions/s-tell")).status_code == 404:
        await project.function("s-tell", TELL)
    body = fields if {"cron", "every", "at"} & fields.keys() else DAILY | fields
    return await project.develop.ok("POST", "/v1/schedules", {"function": "s-tell", **body})


async def until(question: Any) -> Any:
    async with asyncio.timeout(UNTIL_S):
        while not (answer := await question()):
            await asyncio.sleep(0.02)  # real runs, in a cell
    return answer


async def ended(project: Project, execution_id: str) -> Any:
    async def found() -> Any:
        one = await project.operate.ok("GET", f"/v1/executions/{execution_id}")
        return one if one["status"] not in {"queued", "running"} else None

    return await until(found)


async def test_a_schedule_is_shown_as_it_will_run(project: Project) -> None:
    """Defaults are written out; the time zone always."""
    made = await schedule(project, cron="0 7 * * MON-FRI", name="s-morning", payload={"to": 1})

    shown = await project.operate.ok("GET", "/v1/schedules/s-morning")

    assert made == {name: shown[name] for name in made}
    assert made["id"].startswith("sch_")
    assert (made["function"], made["timezone"], made["payload"]) == ("s-tell", "UTC", {"to": 1})
    assert (made["overlap"], made["catchup_window"], made["jitter"]) == ("skip", "1h", "0s")
    assert made["dst"] == {"gap": "run_after", "fold": "first"}
    assert (made["priority"], made["queue"], made["paused"]) == ("default", "default", False)
    assert shown["next_fires"][0]["at"] == made["next_at"]
    assert len(shown["next_fires"]) == 5
    assert (shown["last_fires"], shown["last_status"]) == ([], None)


async def test_all_fields_come_back_as_they_were_sent(project: Project) -> None:
    """So that they can be sent again."""
    await project.function("s-alarm", "export default { async job(e) { return e; } }")
    sent = {
        "name": "s-all", "function": "s-tell", "cron": "30 59 23 * * *", "seconds": True,
        "timezone": "Asia/Tokyo", "dst": {"gap": "skip", "fold": "both"}, "payload": [1, "x"],
        "overlap": "buffer_one", "catchup_window": "10m", "jitter": "90s", "priority": "low",
        "queue": "reports", "max_attempts": 4, "pause_on_failure": 5,
        "on_failure": {"function": "s-alarm", "times": 2}, "on_recovery": {"function": "s-alarm"},
        "start_at": "2030-01-01T00:00:00.000Z", "end_at": "2031-01-01T00:00:00.000Z",
    }  # fmt: skip

    made = await schedule(project, **sent)

    assert {name: made[name] for name in sent} == sent
    assert made["next_at"] == "2030-01-01T14:59:30.000Z"


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"function": "s-none", "cron": "* * * * *"}, "/function"),
        ({"function": "s-device", "cron": "* * * * *"}, "/function"),
        ({"function": "s-tell"}, "/cron"),
        ({"function": "s-tell", "cron": "* * * * *", "every": "5m"}, "/cron"),
        ({"function": "s-tell", "cron": "* * * * *", "every": "daily"}, "/cron"),
        ({"function": "s-tell", "cron": "0 0 L * *"}, "/cron"),
        ({"function": "s-tell", "every": "0.5s"}, "/every"),
        ({"function": "s-tell", "every": "yearly"}, "/every"),
        ({"function": "s-tell", "at": "soon"}, "/at"),
        ({"function": "s-tell", "at": "2010-01-01T00:00:00Z"}, "/at"),
        ({"function": "s-tell", "cron": "* * * * *", "timezone": "Mars"}, "/timezone"),
        ({"function": "s-tell", "cron": "* * * * *", "dst": {"gap": "x"}}, "/dst/gap"),
        ({"function": "s-tell", "cron": "* * * * *", "end_at": "2010-01-01"}, "/end_at"),
        ({"function": "s-tell", "cron": "* * * * *", "start_at": "x"}, "/start_at"),
        ({"function": "s-tell", "cron": "* * * * *", "overlap": "x"}, "/overlap"),
        ({"function": "s-tell", "cron": "* * * * *", "catchup_window": "1s"}, "/catchup_window"),
        ({"function": "s-tell", "cron": "* * * * *", "jitter": "2d"}, "/jitter"),
        ({"function": "s-tell", "cron": "* * * * *", "priority": "x"}, "/priority"),
        ({"function": "s-tell", "cron": "* * * * *", "queue": "a b"}, "/queue"),
        ({"function": "s-tell", "cron": "* * * * *", "max_attempts": 0}, "/max_attempts"),
        ({"function": "s-tell", "cron": "* * * * *", "pause_on_failure": 0}, "/pause_on_failure"),
        ({"function": "s-tell", "cron": "* * * * *", "name": ""}, "/name"),
        ({"function": "s-tell", "cron": "* * * * *", "name": "a/b"}, "/name"),
        ({"function": "s-tell", "cron": "* * * * *", "name": "a b"}, "/name"),
        ({"function": "s-tell", "cron": "* * * * *", "timezone": "right/UTC"}, "/timezone"),
        (
            {
                "function": "s-tell", "cron": "* * * * *",
                "on_failure": {"function": "s-tell", "times": 0},
            },
            "/on_failure/times",
        ),
        (
            {"function": "s-tell", "cron": "* * * * *", "on_failure": {"function": "s-none"}},
            "/on_failure/function",
        ),
        (
            {"function": "s-tell", "cron": "* * * * *", "device_local": {"product": "s-none"}},
            "/device_local/product",
        ),
        (
            {"function": "s-tell", "every": "5m", "device_local": {"product": "s-things"}},
            "/every",
        ),
        (
            {
                "function": "s-tell", "at": "2031-01-01T07:00:00Z",
                "device_local": {"product": "s-things"},
            },
            "/at",
        ),
        (
            {
                "function": "s-tell", "cron": "@daily", "timezone": "UTC",
                "device_local": {"product": "s-things"},
            },
            "/timezone",
        ),
        ({"function": "s-tell", "cron": "* * * * *", "wrong": 1}, "/wrong"),
    ],
)  # fmt: skip
async def test_a_refusal_points_at_the_field(
    shared: Project, fields: dict[str, Any], pointer: str
) -> None:
    """And nothing is made."""
    if (await shared.develop.call("GET", "/v1/functions/s-device")).status_code == 404:
        await shared.function("s-tell", TELL)
        await shared.function("s-device", "function trigger(params, callback) { callback(); }")
        await shared.operate.ok("POST", "/v1/products", {"name": "s-things"})

    problem = await shared.develop.refused(422, "POST", "/v1/schedules", fields)

    assert [error["pointer"] for error in problem["errors"]] == [pointer]
    assert await shared.operate.items("/v1/schedules") == []


async def test_a_payload_has_its_limit(project: Project) -> None:
    """Each run has a copy of it."""
    await project.function("s-tell", TELL)

    problem = await project.develop.refused(
        413, "POST", "/v1/schedules", DAILY | {"payload": "x" * 65_536}
    )

    assert problem["limit"]["name"] == "schedule_payload_bytes"


async def test_classic_jobs_run_hourly_or_daily(project: Project) -> None:
    """A two-way choice, as it was."""
    await project.function(
        "s-classic", "function job(params, callback) { callback(null, params); }"
    )

    hourly = await schedule(project, function="s-classic", every="hourly")
    daily = await schedule(project, function="s-classic", every="daily", timezone="Europe/Madrid")
    fired = await project.operate.ok("POST", f"/v1/schedules/{hourly['id']}/trigger")
    run = await ended(project, fired["execution_id"])

    assert (hourly["cron"], hourly["every"], daily["cron"]) == ("@hourly", None, "@daily")
    assert (run["handler"], run["status"], run["result"]) == ("job", "succeeded", {})


async def test_a_list_is_newest_first_and_by_function(project: Project) -> None:
    """With the next due time of each."""
    first = await schedule(project, name="s-1")
    await project.function("s-other", TELL)
    second = await schedule(project, **DAILY | {"function": "s-other", "name": "s-2"})

    everything = await project.operate.items("/v1/schedules", limit=1)
    of_one = await project.operate.items("/v1/schedules", function="s-tell")

    assert everything == [second, first]
    assert of_one == [first]
    assert first["next_at"] is not None


async def test_a_change_is_of_what_is_sent(project: Project) -> None:
    """null stands for the default."""
    made = await schedule(project, name="s-changing", overlap="allow_all", jitter="5s")
    path = f"/v1/schedules/{made['id']}"

    changed = await project.develop.ok("PATCH", path, {"dst": {"fold": "both"}, "overlap": None})
    again = await project.develop.ok("PATCH", path, {"every": "90m", "payload": {"n": 1}})
    problem = await project.develop.refused(422, "PATCH", path, {"at": "2010-01-01T00:00:00"})

    assert changed == made | {"dst": {"gap": "run_after", "fold": "both"}, "overlap": "skip"}
    assert (again["cron"], again["every"], again["payload"]) == (None, "90m", {"n": 1})
    assert again["jitter"] == "5s"
    assert problem["errors"][0]["pointer"] == "/at"
    assert await project.develop.ok("GET", path) | again == await project.develop.ok("GET", path)


async def test_a_name_is_taken_once(project: Project) -> None:
    """In the project; another one may have it too."""
    await schedule(project, name="s-same")

    problem = await project.develop.refused(
        409, "POST", "/v1/schedules", DAILY | {"name": "s-same"}
    )

    assert "s-same" in problem["detail"]


async def test_another_projects_schedules_are_not_there(
    project: Project, neighbour: Project
) -> None:
    """Whatever is asked of them."""
    made = await schedule(project)
    path = f"/v1/schedules/{made['id']}"

    for method, rest, body in (
        ("GET", "", None), ("PATCH", "", {}), ("DELETE", "", None), ("POST", "/pause", {}),
        ("POST", "/resume", None), ("POST", "/trigger", None), ("GET", "/preview", None),
        ("POST", "/backfill", {"from": "2026-01-01", "to": "2026-01-02"}),
    ):  # fmt: skip
        await neighbour.admin.refused(
            404, method, path + rest, body, headers=neighbour_of(neighbour)
        )

    assert await neighbour.operate.items("/v1/schedules") == []


def neighbour_of(project: Project) -> dict[str, str]:
    return {"X-Project": project.id}


async def test_operators_run_and_pause_but_do_not_make(project: Project) -> None:
    """Making is for who may make triggers."""
    made = await schedule(project)

    await project.operate.refused(403, "POST", "/v1/schedules", DAILY)
    await project.operate.refused(403, "DELETE", f"/v1/schedules/{made['id']}")
    await project.ingest.refused(403, "GET", "/v1/schedules")
    await project.operate.ok("POST", f"/v1/schedules/{made['id']}/pause")


async def test_a_preview_shows_exact_instants(project: Project) -> None:
    """Local and UTC, and what clock changes do."""
    made = await schedule(project)
    path = f"/v1/schedules/{made['id']}/preview"

    spring = await project.operate.ok(
        "GET", path, params={"from": "2026-03-28T00:00:00Z", "to": "2026-03-30T12:00:00Z"}
    )
    autumn = await project.operate.ok("GET", path, params={"from": "2026-10-25", "limit": 1})

    assert spring["items"] == [
        {
            "at": "2026-03-28T01:30:00.000Z", "local": "2026-03-28T02:30:00+01:00",
            "timezone": "Europe/Madrid", "note": "",
        },
        {
            "at": "2026-03-29T01:00:00.000Z", "local": "2026-03-29T03:00:00+02:00",
            "timezone": "Europe/Madrid",
            "note": "gap: 02:30 does not exist, runs at 03:00",
        },
        {
            "at": "2026-03-30T00:30:00.000Z", "local": "2026-03-30T02:30:00+02:00",
            "timezone": "Europe/Madrid", "note": "",
        },
    ]  # fmt: skip
    assert autumn["items"][0]["note"] == "fold: first of two, the second is left out"
    await project.operate.refused(422, "GET", path, params={"from": "2027", "to": "2026-01-01"})
    await project.operate.refused(422, "GET", path, params={"limit": 1001})


async def test_a_preview_needs_no_schedule(shared: Project) -> None:
    """And says what a gap skips."""
    body = {
        "cron": "30 2 * * *", "timezone": "Europe/Madrid", "dst": {"gap": "skip"},
        "from": "2026-03-28T12:00:00Z", "to": "2026-03-30T00:00:00Z", "limit": 5,
    }  # fmt: skip

    found = await shared.operate.ok("POST", "/v1/schedules/preview", body)
    once = await shared.operate.ok(
        "POST",
        "/v1/schedules/preview",
        {"at": "2031-03-30T02:30:00", "timezone": "Europe/Madrid", "dst": {"gap": "skip"}},
    )
    refused = await shared.operate.refused(
        422, "POST", "/v1/schedules/preview", {"cron": "*/90 * * * *"}
    )

    assert found == {
        "items": [],
        "skipped": [
            {
                "local": "2026-03-29T02:30:00",
                "timezone": "Europe/Madrid",
                "note": "gap: 02:30 does not exist",
            }
        ],
    }
    assert (once["items"], [one["local"] for one in once["skipped"]]) == (
        [], ["2031-03-30T02:30:00"],
    )  # fmt: skip
    assert refused["errors"][0]["pointer"] == "/cron"


async def test_a_trigger_runs_at_once(project: Project) -> None:
    """The handler gets the event; the schedule shows how it ended."""
    made = await schedule(project, name="s-now", payload={"n": 1})

    response = await project.operate.call("POST", "/v1/schedules/s-now/trigger")
    run = await ended(project, response.json()["execution_id"])
    shown = await project.operate.ok("GET", "/v1/schedules/s-now")

    assert response.status_code == 202
    assert response.headers["location"] == f"/v1/executions/{run['id']}"
    assert (run["cause"], run["handler"], run["status"]) == ("schedule", "scheduled", "succeeded")
    assert run["result"]["scheduleId"] == made["id"]
    assert (run["result"]["payload"], run["result"]["catchUp"]) == ({"n": 1}, False)
    assert shown["last_status"] == "succeeded"


async def test_a_trigger_of_what_runs_is_refused(project: Project) -> None:
    """With the way around it."""
    source = (
        "export default { async scheduled() { await new Promise((r) => setTimeout(r, 5000)); } }"
    )
    await project.function("s-slow", source)
    await schedule(project, **DAILY | {"function": "s-slow", "name": "s-busy"})
    await project.operate.ok("POST", "/v1/schedules/s-busy/trigger")

    problem = await project.operate.refused(409, "POST", "/v1/schedules/s-busy/trigger")
    await project.operate.ok("POST", "/v1/schedules/s-busy/trigger?force=true")

    assert "force=true" in problem["detail"]


async def test_a_trigger_takes_its_device_from_the_query(project: Project) -> None:
    """What stands in the body instead is refused, not passed over."""
    await project.operate.ok("POST", "/v1/products", {"name": "s-things"})
    local = {"device_local": {"product": "s-things"}, "cron": "0 7 * * *"}
    await schedule(project, name="s-there", **local)
    path = "/v1/schedules/s-there/trigger"

    missing = await project.operate.refused(422, "POST", path)
    unknown = await project.operate.refused(422, "POST", f"{path}?device=none")
    misplaced = await project.operate.refused(422, "POST", path, {"device": "none"})

    pointers = [one["errors"][0]["pointer"] for one in (missing, unknown, misplaced)]
    assert pointers == ["?device", "?device", "/device"]


async def test_a_pause_says_why(project: Project) -> None:
    """And a paused schedule has no due time."""
    await schedule(project, name="s-held")

    paused = await project.operate.ok("POST", "/v1/schedules/s-held/pause", {"reason": "closed"})
    shown = await project.operate.ok("GET", "/v1/schedules/s-held")
    resumed = await project.operate.ok("POST", "/v1/schedules/s-held/resume")

    assert (paused["paused"], paused["paused_reason"], paused["next_at"]) == (True, "closed", None)
    assert shown["next_fires"] == []
    assert (resumed["paused"], resumed["paused_reason"]) == (False, None)
    assert resumed["next_at"] is not None


async def test_a_deleted_schedule_is_gone(project: Project) -> None:
    """Its function stays; a deleted function takes its schedules with it."""
    made = await schedule(project)
    other = await schedule(project, name="s-cascade")

    await project.develop.ok("DELETE", f"/v1/schedules/{made['id']}")
    await project.develop.refused(404, "GET", f"/v1/schedules/{made['id']}")
    await project.develop.ok("DELETE", "/v1/functions/s-tell")

    await project.develop.refused(404, "GET", f"/v1/schedules/{other['id']}")


async def test_a_backfill_runs_what_has_passed(project: Project) -> None:
    """One after another; asked again it has nothing to do."""
    await schedule(project, name="s-back", cron="0 0 * * *")
    body = {"from": "2026-01-01T00:00:00Z", "to": "2026-01-04T00:00:00Z"}
    path = "/v1/schedules/s-back/backfill"

    dry = await project.operate.ok("POST", path, body | {"dry_run": True})
    done = await project.operate.ok("POST", path, body)
    runs = [await ended(project, item["execution_id"]) for item in done["items"]]
    again = await project.operate.ok("POST", path, body)
    shown = await project.operate.ok("GET", "/v1/schedules/s-back")
    future = {"from": "2026-01-01T00:00:00Z", "to": "2999-01-01T00:00:00Z"}
    problem = await project.operate.refused(422, "POST", path, future)

    assert (dry["count"], dry["dry_run"], done["count"], again["count"]) == (3, True, 3, 0)
    assert [item["execution_id"] for item in dry["items"]] == [None] * 3
    assert [run["result"]["time"] for run in runs] == [item["at"] for item in done["items"]]
    assert [run["result"]["catchUp"] for run in runs] == [True] * 3
    assert [fire["status"] for fire in shown["last_fires"]] == ["succeeded"] * 3
    assert problem["errors"][0]["pointer"] == "/to"


async def test_due_times_run_by_themselves(project: Project) -> None:
    """From the cursor to a run in a cell; the device-local one knows its device."""
    device = await project.device("s-things")
    await schedule(project, name="s-due", every="1s")
    await schedule(
        project, name="s-local", cron="* * * * * *", seconds=True,
        device_local={"product": "s-things"}, overlap="allow_all",
    )  # fmt: skip

    async def succeeded() -> Any:
        shown = await project.operate.ok("GET", "/v1/schedules/s-due")
        local = await project.operate.ok("GET", "/v1/schedules/s-local")
        return shown["last_status"] and local["last_status"]

    assert await until(succeeded) == "succeeded"

    local = await project.operate.ok("GET", "/v1/schedules/s-local")
    runs = await project.operate.items("/v1/executions", device=device["id"])
    assert (local["timezone"], local["device_local"]) == ("device", {"product": "s-things"})
    assert runs[-1]["cause"] == "schedule"
    assert local["last_fires"][0]["device_id"] == device["id"]
    for name in ("s-due", "s-local"):
        await project.develop.ok("DELETE", f"/v1/schedules/{name}")


async def test_failures_are_followed(project: Project) -> None:
    """The schedule is paused, and a function is told."""
    await project.function("s-failing", FAIL)
    await project.function("s-alarm", "export default { async job(event) { return event; } }")
    made = await schedule(
        project,
        **DAILY | {
            "function": "s-failing", "name": "s-watched", "pause_on_failure": 1,
            "on_failure": {"function": "s-alarm"},
        },
    )  # fmt: skip

    fired = await project.operate.ok("POST", "/v1/schedules/s-watched/trigger")
    await ended(project, fired["execution_id"])
    (told,) = await until(
        lambda: project.operate.items("/v1/executions", function="s-alarm", status="succeeded")
    )
    run = await project.operate.ok("GET", f"/v1/executions/{told['id']}")
    shown = await project.operate.ok("GET", "/v1/schedules/s-watched")

    assert run["result"]["type"] == "schedule.failed"
    assert run["result"]["scheduleId"] == made["id"]
    assert run["result"]["executionId"] == fired["execution_id"]
    assert run["result"]["error"]["message"] == "no"
    assert (shown["paused"], shown["paused_reason"]) == (True, "failed 1 times in a row")
    assert shown["last_status"] == "failed"


async def test_a_version_that_no_schedule_could_run_is_not_deployed(project: Project) -> None:
    """Else due times would pass without a run."""
    await schedule(project, name="s-bound")
    other = {"source": "export default { async fetch() { return new Response(); } }"}
    made = await project.develop.ok("POST", "/v1/functions/s-tell/versions", other)
    body = {"versions": [{"version": made["version"], "percent": 100}]}

    problem = await project.develop.refused(422, "POST", "/v1/functions/s-tell/deployments", body)

    assert "s-bound" in problem["detail"]


async def test_a_device_local_preview_is_of_each_zone(project: Project) -> None:
    """In the order of the instants."""
    for zone in ("Europe/Madrid", "America/New_York"):
        await project.operate.call("POST", "/v1/products", {"name": "s-things"})
        device = {"product": "s-things", "name": zone, "timezone": zone}
        await project.operate.ok("POST", "/v1/devices", device)
    await schedule(
        project, name="s-everywhere", cron="0 7 * * *", device_local={"product": "s-things"}
    )

    found = await project.operate.ok(
        "GET", "/v1/schedules/s-everywhere/preview",
        params={"from": "2026-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z"},
    )  # fmt: skip

    assert [(item["timezone"], item["local"]) for item in found["items"]] == [
        ("Europe/Madrid", "2026-01-01T07:00:00+01:00"),
        ("America/New_York", "2026-01-01T07:00:00-05:00"),
    ]
