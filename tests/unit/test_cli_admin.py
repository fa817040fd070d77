"""`cloudcode admin` against canned answers: what it asks for, and what it shows."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import json
from typing import Any

import pytest

from tests.unit.test_cli import Api, api, cloudcode  # noqa: F401 - a fixture

RETENTION = "/v1/projects/current/retention"
NODE = {
    "id": "node_1", "kind": "serve", "host": "box", "pid": 7, "release": "1.0.0",
    "other_release": False, "this": True, "started_at": "2010-10-29T00:00:00.000Z",
    "beat_age_seconds": 0.5, "silent": False, "held": 3, "state": {},
}  # fmt: skip


def kept(**own: Any) -> dict[str, Any]:
    """Return what the engine shows of retention; `own`: what the project has said itself."""
    said = {"rows": None, "bytes": None, "age_days": 30, "source": "settings"}
    kinds = (
        "executions", "logs", "events", "values", "jobs", "dead_letters", "deliveries",
        "schedule_fires",
    )  # fmt: skip
    shown: dict[str, Any] = {"project": "prj_1", "dry_run": False}
    return shown | {
        kind: said | own.get(kind, {}) | {"usage": None, "would_delete": None} for kind in kinds
    }


def test_nodes_are_a_table_and_other_releases_are_said(api: Api) -> None:
    """Kind, host, process, release, beat, held."""
    other = NODE | {"id": "node_2", "kind": "worker", "release": "0.9.0"}
    api.answer("GET /v1/admin/nodes", 200, {"items": [NODE, other], "next_cursor": None})

    ran = cloudcode("admin", "nodes", url=api.url)

    assert ran.code == 0
    for shown in ("node_1", "node_2", "box", "worker", "0.9.0"):
        assert shown in ran.out
    assert "releases differ: 0.9.0, 1.0.0" in ran.err


def test_stuck_work_is_shown_with_its_remedy(api: Api) -> None:
    """And as JSON whole."""
    item = {
        "kind": "orphaned", "id": "exe_1", "project": "prj_1", "since": "2010-10-29T00:00:00.000Z",
        "age_seconds": 5.0, "node": "node_9", "detail": None, "remedy": "release the node",
    }  # fmt: skip
    api.answer("GET /v1/admin/stuck", 200, {"items": [item], "next_cursor": None})

    shown = cloudcode("admin", "stuck", "--limit", "7", url=api.url)
    as_json = cloudcode("admin", "stuck", "--json", url=api.url)

    assert "orphaned" in shown.out
    assert "release the node" in shown.out
    assert api.asked[0][2] == {"limit": ["7"]}
    assert json.loads(as_json.out) == {"items": [item]}


def test_queues_are_those_of_all_projects_or_of_one(api: Api) -> None:
    """As the global option says; what was not counted is said."""
    item = {
        "project": "prj_1", "project_name": "farm", "queue": "images", "priority": "high",
        "queued": 1, "delayed": 2, "parked": 3, "held": 4, "oldest_age_seconds": 5.0,
    }  # fmt: skip
    found = {"items": [item], "next_cursor": None, "complete": False}
    api.answer("GET /v1/admin/queues", 200, found)

    ran = cloudcode("admin", "queues", url=api.url)
    cloudcode("--project", "farm", "admin", "queues", url=api.url)
    as_json = cloudcode("admin", "queues", "--json", url=api.url)

    assert ran.out.split("\n")[1].split() == ["farm", "images", "high", "1", "2", "3", "4", "5.0"]
    assert "there is more" in ran.err
    assert [query for _, _, query, _ in api.asked] == [{}, {"project": ["farm"]}, {}]
    assert json.loads(as_json.out) == found


@pytest.mark.parametrize(("what", "kind"), [("exe_1", "run"), ("node_1", "node")])
def test_release_names_a_run_or_a_node(what: str, kind: str, api: Api) -> None:
    """By the id's beginning; a dry run is asked for as such."""
    answer = {"dry_run": True, "node": "node_1", "runs": 2, "deliveries": 0}
    api.answer("POST /v1/admin/release", 200, answer)

    ran = cloudcode("admin", "release", what, "--dry-run", "--json", url=api.url)

    assert api.bodies("POST /v1/admin/release") == [{kind: what, "dry_run": True}]
    assert json.loads(ran.out) == answer


def test_what_is_neither_run_nor_node_is_not_sent(api: Api) -> None:
    """The ids say what they are."""
    ran = cloudcode("admin", "release", "job_1", url=api.url)

    assert ran.code == 1
    assert "exe_ and node_" in ran.err
    assert api.asked == []


def test_tickets_are_reissued(api: Api) -> None:
    """And listed."""
    item = {"project": "prj_1", "priority": 0, "due_at": "2010-10-29T00:00:00.000Z"}
    route = "POST /v1/admin/tickets/reissue"
    api.answer(route, 200, {"dry_run": False, "items": [item]})

    ran = cloudcode("admin", "tickets", "reissue", url=api.url)

    assert api.bodies(route) == [{"dry_run": False}]
    assert "prj_1" in ran.out


def test_retention_is_a_table_with_what_there_is(api: Api) -> None:
    """A count that was cut short has a plus."""
    found = kept()
    found["logs"]["usage"] = {"rows": 9, "bytes": 900, "oldest_at": None, "complete": False}
    found["logs"]["would_delete"] = {"rows": 4, "bytes": 400, "complete": False}
    api.answer(f"GET {RETENTION}", 200, found)

    ran = cloudcode("--project", "farm", "admin", "retention", "show", url=api.url)
    plain = cloudcode("admin", "retention", "show", "--no-usage", url=api.url)

    (line,) = [line for line in ran.out.split("\n") if line.startswith("logs ")]
    assert line.split() == ["logs", "none", "none", "30", "settings", "9+", "900+", "4+"]
    assert api.headers[0]["X-Project"] == "farm"
    assert [query for _, _, query, _ in api.asked] == [{"usage": ["true"]}, {"usage": ["false"]}]
    assert plain.code == 0


def test_a_rule_is_set_and_the_others_stay(api: Api) -> None:
    """What the project has said before is sent again: the engine replaces all of it."""
    own = {"rows": 5, "age_days": None, "source": "project"}
    api.answer(f"GET {RETENTION}", 200, kept(jobs=own, events=own))
    api.answer(f"PUT {RETENTION}", 200, kept())

    rules = (
        "executions.rows=1.5M",
        "executions.age_days=7.5",
        "values.bytes=20G",
        "events=default",
    )
    ran = cloudcode("admin", "retention", "set", *rules, "--dry-run", url=api.url)

    assert ran.code == 0
    assert api.bodies(f"PUT {RETENTION}") == [
        {
            "executions": {"rows": 1_500_000, "age_days": 7.5},
            "values": {"bytes": 20_000_000_000},
            "jobs": {"rows": 5, "age_days": 0},
        }
    ]
    assert api.asked[1][2] == {"dry_run": ["true"]}


def test_a_limit_is_taken_away(api: Api) -> None:
    """Of an age that means for ever."""
    own = {"rows": 5, "bytes": 6, "age_days": 7, "source": "project"}
    api.answer(f"GET {RETENTION}", 200, kept(jobs=own))
    api.answer(f"PUT {RETENTION}", 200, kept())

    rules = ("jobs.rows=none", "jobs.age_days=none")
    cloudcode("admin", "retention", "set", *rules, url=api.url)

    assert api.bodies(f"PUT {RETENTION}") == [{"jobs": {"bytes": 6, "age_days": 0}}]


@pytest.mark.parametrize(
    "rule", ["executions", "executions.rows", "run.rows=1", "jobs.size=1", "jobs.rows=", "jobs=5",
             "jobs.rows=many", "jobs.rows=1X", "jobs.age_days=inf days"],
)  # fmt: skip
def test_a_rule_that_says_nothing_is_refused(rule: str, api: Api) -> None:
    """Before anything is changed, with an example."""
    api.answer(f"GET {RETENTION}", 200, kept())

    ran = cloudcode("admin", "retention", "set", rule, url=api.url)

    assert ran.code == 1
    assert "for example" in ran.err
    assert api.bodies(f"PUT {RETENTION}") == []
