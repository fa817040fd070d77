"""The life of every resource of the control plane, on a whole engine."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import asyncio

import pytest

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


async def test_a_function_lives_from_upload_to_deletion(project: Project) -> None:
    """It is live at once, can be read back with its code, and is gone with its name free again."""
    fields = {"limits": {"cpu_ms": 500}, "variables": {"A": "ü"}, "allowed_hosts": ["Example.COM"]}
    made = await project.function("alarm", ECHO, message="first", **fields)

    whole = await project.operate.ok("GET", "/v1/functions/alarm")
    listed = await project.develop.items("/v1/functions")
    await project.develop.ok("DELETE", "/v1/functions/alarm")
    again = await project.function("alarm", ECHO)

    assert made["version"] == 1
    assert made["deployed"] is True
    assert made["handlers"] == ["job"]
    assert whole["live"] == [{"version": 1, "percent": 100}]
    assert whole["files"] == {"main.js": ECHO}
    assert whole["limits"] == {"cpu_ms": 500}
    assert whole["variables"] == {"A": "ü"}
    assert whole["allowed_hosts"] == ["example.com"]
    assert [one["id"] for one in listed] == [made["id"]]
    assert again["id"] != made["id"]


async def test_typescript_in_several_files_is_built(project: Project) -> None:
    """`files` and `main` make one program; the version shows all of them."""
    files = {
        "main.ts": 'import { one } from "./lib/one"; export function job(): number { return one }',
        "lib/one.ts": "export const one: number = 1;",
    }

    made = await project.develop.ok("POST", "/v1/functions", {"name": "sum", "files": files})
    version = await project.develop.ok("GET", "/v1/functions/sum/versions/1")
    result = await project.develop.ok("POST", "/v1/functions/sum/invoke")

    assert made["handlers"] == ["job"]
    assert version["files"] == files
    assert version["main"] == "main.ts"
    assert result == 1


async def test_a_version_takes_over_what_it_does_not_say(project: Project) -> None:
    """Limits and variables of the latest version hold for the next, unless it gives its own."""
    await project.function("alarm", ECHO, limits={"cpu_ms": 500}, variables={"A": "1", "B": "2"})

    body = {"source": ECHO, "variables": {"A": "3"}, "message": "second"}
    made = await project.develop.ok("POST", "/v1/functions/alarm/versions", body)
    second = await project.develop.ok("GET", "/v1/functions/alarm/versions/2")
    versions = await project.operate.items("/v1/functions/alarm/versions")

    assert made == {"version": 2, "handlers": ["job"], "deployed": False, "warnings": []}
    assert second["limits"] == {"cpu_ms": 500}
    assert second["variables"] == {"A": "3"}
    assert [(one["version"], one["live_percent"]) for one in versions] == [(2, 0), (1, 100)]


async def test_deployments_share_and_roll_back(project: Project) -> None:
    """The newest deployment is live; a rollback brings back what was live before."""
    await project.function("alarm", ECHO)
    path = "/v1/functions/alarm"
    refused = await project.develop.refused(409, "POST", f"{path}/rollback")
    await project.develop.ok("POST", f"{path}/versions?deploy=true", {"source": ECHO})
    halves = [{"version": 1, "percent": 50}, {"version": 2, "percent": 50}]
    await project.develop.ok("POST", f"{path}/deployments", {"versions": halves})

    back = await project.develop.ok("POST", f"{path}/rollback")
    deployments = await project.operate.items(f"{path}/deployments")
    shown = await project.operate.ok("GET", path)

    assert "no deployment before" in refused["detail"]
    assert back["versions"] == [{"version": 2, "percent": 100}]
    assert shown["live"] == back["versions"]
    assert [len(one["versions"]) for one in deployments] == [1, 2, 1, 1]
    assert deployments[0]["id"] == back["id"]


async def test_products_and_devices(project: Project) -> None:
    """A device belongs to a product by id or name, has a token, and goes with its timelines."""
    product = await project.operate.ok("POST", "/v1/products", {"name": "Thermomètre 温度"})
    body = {"product": product["id"], "name": "Nord ❄", "timezone": "Europe/Madrid", "tags": ["a"]}
    device = await project.operate.ok("POST", "/v1/devices", body)
    path = f"/v1/devices/{device['id']}"
    values = {"values": [{"key": "t", "value": 1}]}
    await project.ingest.ok("POST", f"{path}/values", values)

    found = await project.develop.ok("GET", "/v1/products/Thermomètre 温度")
    listed = await project.develop.ok("GET", "/v1/devices", params={"product": product["name"]})
    shown = await project.develop.ok("GET", path)
    await project.operate.ok("DELETE", path)
    gone = await project.operate.refused(404, "GET", path)

    assert found == product
    assert listed["items"] == [shown]
    assert shown == device
    assert len(device["token"]) == 43
    assert device["product"] == "Thermomètre 温度"
    assert device["timezone"] == "Europe/Madrid"
    assert gone["code"] == "not_found"
    token = await project.ingest.call("POST", f"/v2/things/{device['token']}", values)
    assert token.status_code == 401


async def test_values_are_read_newest_first_in_a_window(project: Project) -> None:
    """One resource or all together, between two times, page by page."""
    device = await project.device()
    path = f"/v1/devices/{device['id']}"
    rows = [
        {"key": key, "value": {"n": hour}, "datetime": f"2010-10-29T{hour:02}:00:00Z"}
        for hour in range(6)
        for key in ("a", "b")
    ]
    rows[0]["geo"] = {"lat": 1.5, "long": 2.5}
    await project.ingest.ok("POST", f"{path}/values", {"values": rows})

    everything = await project.operate.items(f"{path}/values", limit=5)
    only_a = await project.operate.items(f"{path}/values", key="a", limit=4)
    query = {"key": "a", "start": "2010-10-29T02:00:00+01:00", "end": "2010-10-29T03:00:00Z"}
    window = await project.operate.ok("GET", f"{path}/values", params=query)
    resources = await project.operate.ok("GET", f"{path}/resources")

    assert len(everything) == 12
    assert [one["datetime"] for one in everything] == sorted(
        (one["datetime"] for one in everything), reverse=True
    )
    assert [one["value"]["n"] for one in only_a] == [5, 4, 3, 2, 1, 0]
    assert [one["value"]["n"] for one in window["items"]] == [3, 2, 1]
    assert only_a[-1]["geo"] == {"lat": 1.5, "long": 2.5}
    assert resources["items"] == [{"key": "a"}, {"key": "b"}]


async def test_triggers_run_functions_and_go_with_them(project: Project) -> None:
    """A write of a device of the product runs the function; the run is listed and explained."""
    await project.function("alarm", ON_WRITE)
    device = await project.device()
    body = {"function": "alarm", "product": "thermometer", "keys": ["t", "t"]}
    trigger = await project.develop.ok("POST", "/v1/triggers", body)
    values = {"values": [{"key": "t", "value": 1}]}
    write = f"/v1/devices/{device['id']}/values"

    caused = (await project.ingest.ok("POST", write, values))["executions"]
    run = await _ended(project, caused[0])
    listed = await project.operate.ok("GET", "/v1/triggers", params={"function": "alarm"})
    await project.develop.ok("DELETE", "/v1/functions/alarm")
    after = await project.operate.items("/v1/triggers")
    nothing = await project.ingest.ok("POST", write, values)

    assert trigger["keys"] == ["t"]
    assert listed["items"] == [trigger]
    assert (run["function"], run["version"], run["status"]) == ("alarm", 1, "succeeded")
    assert (run["device_id"], run["cause"]) == (device["id"], "write")
    assert run["input"]["values"][0]["value"] == 1
    assert after == []
    assert nothing["executions"] == []
    kept = await project.operate.ok("GET", "/v1/executions", params={"function": "alarm"})
    assert [one["id"] for one in kept["items"]] == caused


async def test_executions_are_filtered_and_explained(project: Project) -> None:
    """By function, status and time; the report, the log and the error are there."""
    await project.function("good", "export function job(p) { console.log('hi', p); return p }")
    await project.function("bad", "export function job() { throw new TypeError('no') }")
    await project.develop.ok("POST", "/v1/functions/good/invoke", {"a": 1})
    problem = await project.develop.refused(502, "POST", "/v1/functions/bad/invoke", 1)

    good = await project.operate.ok("GET", "/v1/executions", params={"function": "good"})
    failed = await project.operate.ok("GET", "/v1/executions", params={"status": "failed"})
    late = await project.operate.items("/v1/executions", since="2999-01-01T00:00:00Z")
    recent = await project.operate.items("/v1/executions", since="2010-01-01T00:00:00Z")
    whole = await project.operate.ok("GET", f"/v1/executions/{good['items'][0]['id']}")
    log = await project.operate.ok("GET", f"/v1/executions/{whole['id']}/logs")

    assert problem["error"]["message"] == "no"
    assert [one["id"] for one in failed["items"]] == [problem["execution_id"]]
    assert failed["items"][0]["error"]["name"] == "TypeError"
    assert late == []
    assert len(recent) == 2
    assert (whole["input"], whole["result"]) == ({"a": 1}, {"a": 1})
    assert whole["cpu_ms"] > 0
    assert log["items"][0]["seq"] == 1
    assert "hi" in log["items"][0]["msg"]


async def test_secrets_and_connections_come_never_out(project: Project) -> None:
    """They are listed by name; what they hold is nowhere in an answer."""
    await project.develop.ok("PUT", "/v1/secrets/TOKEN", {"value": "s3cr3t"})
    hook = {"kind": "webhook", "credentials": {"url": "https://example.com/s3cr3t"}}
    await project.develop.ok("PUT", "/v1/connections/HOOK", hook)

    secrets = await project.operate.call("GET", "/v1/secrets")
    connections = await project.operate.call("GET", "/v1/connections")
    made = await project.function("uses", ECHO, secrets=["TOKEN"])
    await project.develop.ok("DELETE", "/v1/secrets/TOKEN?force=true")
    await project.develop.ok("DELETE", "/v1/connections/HOOK")

    assert [one["name"] for one in secrets.json()["items"]] == ["TOKEN"]
    assert connections.json()["items"][0]["kind"] == "webhook"
    assert "s3cr3t" not in secrets.text + connections.text
    assert made["version"] == 1
    assert await project.operate.items("/v1/secrets") == []


async def test_deliveries_are_listed_and_resent(project: Project) -> None:
    """A delivery that failed can be sent again by hand."""
    url = "http://127.0.0.1:8/nowhere"
    hook = {"kind": "webhook", "credentials": {"url": url}}
    await project.develop.ok("PUT", "/v1/connections/HOOK", hook)
    source = "export async function job(p, env) { await env.HOOK.send({type: 'x', data: {}}) }"
    await project.function("notify", source)
    await project.develop.ok("POST", "/v1/functions/notify/invoke")

    listed = await project.operate.items("/v1/deliveries", connection="HOOK")
    path = f"/v1/deliveries/{listed[0]['id']}"
    for _ in range(200):
        shown = await project.operate.ok("GET", path)
        if shown["state"] == "failed":
            break
        await asyncio.sleep(0.01)
    taken = await project.operate.call("POST", f"{path}/resend")
    await project.develop.refused(403, "POST", f"{path}/resend")

    assert shown["state"] == "failed"
    assert shown["attempts_log"][0]["delivered"] is False
    assert taken.status_code == 202


async def test_projects_and_keys(project: Project) -> None:
    """A project's first key works in it; a deleted key opens nothing at once."""
    made = await project.admin.ok("POST", "/v1/projects", {"name": "Größe 1"})
    body = {"name": "one more", "scopes": ["operate", "develop"], "project": "Größe 1"}
    key = await project.admin.ok("POST", "/v1/api-keys", body)
    there = {"headers": {"Authorization": f"Bearer {key['key']}"}}
    before = await project.admin.call("GET", "/v1/products", **there)
    keys = await project.admin.items("/v1/api-keys", project=made["id"])
    await project.admin.ok("DELETE", f"/v1/api-keys/{key['id']}")
    after = await project.admin.call("GET", "/v1/products", **there)

    assert made["key"].startswith("cck_")
    assert key["scopes"] == ["develop", "operate"]
    assert [one["name"] for one in keys] == ["one more", "first key"]
    assert key["key"] not in str(keys)
    assert (before.status_code, after.status_code) == (200, 401)


async def test_an_admin_works_in_another_project(project: Project, neighbour: Project) -> None:
    """X-Project names it, by id or name; nobody else may."""
    await neighbour.operate.ok("POST", "/v1/products", {"name": "theirs"})

    for name in (neighbour.id, neighbour.name):
        headers = {"X-Project": name}
        seen = await project.admin.ok("GET", "/v1/products", headers=headers)
        assert [one["name"] for one in seen["items"]] == ["theirs"]
        await project.operate.refused(403, "GET", "/v1/products", headers=headers)
    await project.admin.refused(404, "GET", "/v1/products", headers={"X-Project": "nobody"})
    own = await project.operate.ok("GET", "/v1/products", headers={"X-Project": project.name})
    assert own["items"] == []


async def _ended(project: Project, execution_id: str) -> dict:
    for _ in range(500):
        run = await project.operate.ok("GET", f"/v1/executions/{execution_id}")
        if run["status"] not in {"queued", "running"}:
            return run
        await asyncio.sleep(0.01)
    raise AssertionError(run)
