"""`/v1/projects` and `/v1/api-keys`: how a project is walled in, and what it may use."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import asyncio
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import insert

from engine.allowances import FIELDS, defaults
from engine.projects import ALLOWANCE_MAX
from engine.store.tables import projects
from tests.standins.control_plane import (  # noqa: F401 - fixtures
    Project,
    http,
    neighbour,
    platform,
    project,
    shared,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

NONE = dict.fromkeys(FIELDS)


async def test_a_new_project_is_as_the_operator_has_set_it(project: Project) -> None:
    """Standard cells, no allowance of its own: what holds are the settings."""
    found = await project.admin.ok("GET", "/v1/projects/current")

    default = defaults(project.platform.settings)
    assert (found["id"], found["name"]) == (project.id, project.name)
    assert (found["isolation"], found["allowances"]) == ("standard", NONE)
    assert found["effective"] == {name: getattr(default, name) for name in FIELDS}


async def test_a_project_is_made_with_what_it_may_use(project: Project) -> None:
    """What is named holds at once; all else as for everybody. Lists show it, too."""
    name = f"{project.name} lab"
    body = {
        "name": name,
        "isolation": "hardened",
        "allowances": {"concurrency": 7, "cpu_seconds_per_minute": 2.5, "queued": None},
    }

    made = await project.admin.ok("POST", "/v1/projects", body)
    listed = await project.admin.items("/v1/projects")
    shown = await project.admin.ok("GET", f"/v1/projects/{name}")

    own = {"concurrency": 7, "cpu_seconds_per_minute": 2.5}
    assert made["key"].startswith("cck_")
    assert made["isolation"] == "hardened"
    assert made["allowances"] == NONE | own
    default = defaults(project.platform.settings)
    assert made["effective"] == {field: getattr(default, field) for field in FIELDS} | own
    assert {**shown, "key": made["key"]} == made
    assert [one for one in listed if one["id"] == made["id"]] == [shown]
    assert project.platform.catalogue.hardened(made["id"])


async def test_a_change_leaves_what_it_does_not_name(project: Project) -> None:
    """Null takes one back; 0 is no limit; what holds is known to the hot path with the answer."""
    path = f"/v1/projects/{project.id}"
    await project.admin.ok("PATCH", path, {"allowances": {"concurrency": 5, "queued": 10}})
    await project.admin.ok("PATCH", path, {"isolation": "hardened"})

    changed = await project.admin.ok(
        "PATCH", path, {"allowances": {"queued": None, "cpu_seconds_per_month": 0}}
    )
    unchanged = await project.admin.ok("PATCH", path, {})

    assert changed == unchanged
    assert changed["isolation"] == "hardened"
    assert changed["allowances"] == NONE | {"concurrency": 5, "cpu_seconds_per_month": 0}
    holds = project.platform.catalogue.allowances(project.id)
    assert holds.concurrency == changed["effective"]["concurrency"] == 5
    assert holds.queued == defaults(project.platform.settings).queued


async def test_changes_at_the_same_time_are_all_kept(project: Project) -> None:
    """Each reads what is there and writes in one transaction of the journal."""
    path = f"/v1/projects/{project.id}"
    bodies: list[dict[str, Any]] = [{"allowances": {field: 9}} for field in FIELDS]
    bodies.append({"isolation": "hardened"})

    await asyncio.gather(*(project.admin.ok("PATCH", path, body) for body in bodies))

    found = await project.admin.ok("GET", path)
    assert found["allowances"] == dict.fromkeys(FIELDS, 9)
    assert found["isolation"] == "hardened"


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another isolation": ({"isolation": "soft"}, "/isolation"),
    "isolation of a number": ({"isolation": 1}, "/isolation"),
    "an unknown field": ({"isolated": True}, "/isolated"),
    "a name": ({"name": "other"}, "/name"),
    "an unknown allowance": ({"allowances": {"disk": 1}}, "/allowances/disk"),
    "allowances of a list": ({"allowances": []}, "/allowances"),
    "no allowances": ({"allowances": None}, "/allowances"),
    "a negative amount": ({"allowances": {"queued": -1}}, "/allowances/queued"),
    "a negative share": (
        {"allowances": {"cpu_seconds_per_minute": -0.5}}, "/allowances/cpu_seconds_per_minute",
    ),
    "half a run": ({"allowances": {"concurrency": 1.5}}, "/allowances/concurrency"),
    "an amount of text": ({"allowances": {"concurrency": "5"}}, "/allowances/concurrency"),
    "an amount of yes": ({"allowances": {"concurrency": True}}, "/allowances/concurrency"),
    "too much": (
        {"allowances": {"key_requests_per_minute": ALLOWANCE_MAX + 1}},
        "/allowances/key_requests_per_minute",
    ),
    "far too much": (
        {"allowances": {"cpu_seconds_per_month": 1e308}}, "/allowances/cpu_seconds_per_month",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
async def test_a_wrong_change_is_refused_with_its_field(shared: Project, case: str) -> None:
    """Nothing of it is stored, also of what was right in it."""
    body, pointer = WRONG[case]
    path = f"/v1/projects/{shared.id}"
    before = await shared.admin.ok("GET", path)

    problem = await shared.admin.refused(422, "PATCH", path, {"isolation": "hardened"} | body)
    of_new = await shared.admin.call("POST", "/v1/projects", {"name": "never made"} | body)

    assert problem["errors"][0]["pointer"] == pointer, problem
    assert of_new.status_code in ({201, 422} if case == "a name" else {422})
    assert await shared.admin.ok("GET", path) == before


@pytest.mark.parametrize("name", ["current", "a/b", ".", "..", "prj_1"])
async def test_a_name_that_no_url_could_name_is_refused(shared: Project, name: str) -> None:
    """It would be there, and nobody could show or change it."""
    problem = await shared.admin.refused(422, "POST", "/v1/projects", {"name": name})

    assert problem["errors"][0]["pointer"] == "/name"


async def test_a_name_in_any_language_can_be_a_header(project: Project) -> None:
    """Percent-encoded, as the command line sends it, and as plain UTF-8; a lone % is one."""
    name, odd = f"ünï cødé {project.name}", f"100% {project.name}"
    for each in (name, odd):
        await project.admin.ok("POST", "/v1/projects", {"name": each})

    for sent in (quote(name), name.encode(), odd, quote(odd)):
        found = await project.admin.ok("GET", "/v1/functions", headers={"X-Project": sent})
        assert found["items"] == []
    problem = await project.admin.refused(404, "GET", "/v1/projects/nobody")
    assert problem["detail"] == "no project 'nobody'"


async def test_no_limit_has_no_sign_and_no_hair(project: Project) -> None:
    """-0.0 is 0; what would be shown as 0, and is none, is refused with the least that is."""
    path = f"/v1/projects/{project.id}"
    own = {"cpu_seconds_per_minute": -0.0}
    found = await project.admin.ok("PATCH", path, {"allowances": own})
    own = {"cpu_seconds_per_minute": 0.0001}
    problem = await project.admin.refused(422, "PATCH", path, {"allowances": own})

    assert str(found["allowances"]["cpu_seconds_per_minute"]) in {"0", "0.0"}
    assert "0.001 to" in problem["errors"][0]["message"]


async def test_what_no_number_is_is_refused(shared: Project) -> None:
    """Python would read NaN and Infinity in JSON as numbers."""
    path = f"/v1/projects/{shared.id}"

    for text in ("NaN", "Infinity", "-Infinity", "1e999"):
        body = f'{{"allowances": {{"cpu_seconds_per_minute": {text}}}}}'
        response = await shared.admin.call("PATCH", path, content=body.encode())
        assert response.status_code in {400, 422}, (text, response.text)


async def test_who_may_see_and_change_a_project(project: Project, neighbour: Project) -> None:
    """Its own keys see it, and nobody else's; only admins change it, theirs or another."""
    path = f"/v1/projects/{project.id}"
    for caller in (project.develop, project.operate):
        assert (await caller.ok("GET", path))["id"] == project.id
        await caller.refused(403, "PATCH", path, {"isolation": "hardened"})
    await project.ingest.refused(403, "GET", path)
    for caller in (neighbour.develop, neighbour.operate):
        await caller.refused(403, "GET", path)
    await project.develop.refused(403, "GET", "/v1/projects/nobody")

    by_name = await neighbour.admin.ok("GET", f"/v1/projects/{project.name}")
    await neighbour.admin.refused(404, "GET", "/v1/projects/nobody")
    await neighbour.admin.refused(404, "PATCH", "/v1/projects/nobody", {})

    assert by_name["isolation"] == "standard"


async def test_a_project_of_an_older_release_is_standard(project: Project) -> None:
    """Rows that know nothing of isolation and allowances are as everybody's."""
    row = {"id": "prj_" + "0" * 32, "name": f"{project.name} of old", "created_ms": 1}
    await project.platform.journal.run(lambda connection: connection.execute(
        insert(projects).values(row)
    ))  # fmt: skip
    await project.platform.catalogue.projects_changed()

    found = await project.admin.ok("PATCH", f"/v1/projects/{row['id']}", {})

    assert (found["isolation"], found["allowances"]) == ("standard", NONE)


# --- keys ------------------------------------------------------------------------------------


async def test_a_key_has_a_rate_of_its_own(project: Project) -> None:
    """Given when it is made, changed and taken back later; requests are counted by it at once."""
    body = {"name": "gateway", "scopes": ["ingest"], "requests_per_minute": 600}

    made = await project.admin.ok("POST", "/v1/api-keys", body)
    path = f"/v1/api-keys/{made['id']}"
    changed = await project.admin.ok("PATCH", path, {"requests_per_minute": 0})
    listed = await project.admin.items("/v1/api-keys", project=project.id)
    back = await project.admin.ok("PATCH", path, {"requests_per_minute": None})

    assert made["requests_per_minute"] == 600
    assert changed["requests_per_minute"] == 0
    assert changed in listed
    assert back == {**changed, "requests_per_minute": None}
    assert "key" not in changed


@pytest.mark.parametrize("rate", [-1, 1.5, "5", ALLOWANCE_MAX + 1])
async def test_a_wrong_rate_is_refused(shared: Project, rate: Any) -> None:
    """Of a new key, and of one that is there."""
    body = {"name": "k", "scopes": ["ingest"], "requests_per_minute": rate}
    (first, *_) = await shared.admin.items("/v1/api-keys", project=shared.id)

    new = await shared.admin.refused(422, "POST", "/v1/api-keys", body)
    old = await shared.admin.refused(
        422, "PATCH", f"/v1/api-keys/{first['id']}", {"requests_per_minute": rate}
    )

    for problem in (new, old):
        assert problem["errors"][0]["pointer"] == "/requests_per_minute"


async def test_a_key_that_is_not_there_cannot_be_changed(shared: Project) -> None:
    """404; and a change has to say what to."""
    await shared.admin.refused(404, "PATCH", "/v1/api-keys/x", {"requests_per_minute": 1})
    await shared.admin.refused(422, "PATCH", "/v1/api-keys/x", {})
