"""`cloudcode projects`: what it asks of the engine."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import json

import pytest

from tests.unit.test_cli import Api, api, cloudcode  # noqa: F401 - a fixture

PROJECT = {
    "id": "prj_1", "name": "lab", "created_at": "2010-10-29T00:00:00.000Z",
    "isolation": "hardened", "allowances": {"concurrency": 50}, "effective": {"concurrency": 50},
}  # fmt: skip


def test_projects_are_listed_and_shown(api: Api) -> None:
    """A project by its name, whatever is in it; the key's own without one."""
    api.answer("GET /v1/projects", 200, {"items": [PROJECT], "next_cursor": None})
    api.answer("GET /v1/projects/current", 200, PROJECT)
    api.answer("GET /v1/projects/lab%2F7", 200, PROJECT)

    listed = cloudcode("projects", "list", url=api.url)
    own = cloudcode("projects", "show", "--json", url=api.url)
    other = cloudcode("projects", "show", "lab/7", url=api.url)

    assert "lab" in listed.out
    assert "hardened" in listed.out
    assert json.loads(own.out) == PROJECT
    assert (other.code, "concurrency" in other.out) == (0, True)


def test_a_project_is_made_and_set(api: Api) -> None:
    """Only what was named is sent; `default` takes an allowance back."""
    api.answer("POST /v1/projects", 201, PROJECT | {"key": "cck_1"})
    api.answer("PATCH /v1/projects/lab", 200, PROJECT)

    made = cloudcode("projects", "create", "lab", url=api.url)
    amounts = ["--concurrency", "50", "--cpu-seconds-per-minute", "0.5", "--queued", "default"]
    done = cloudcode("projects", "set", "lab", "--isolation", "hardened", *amounts, url=api.url)

    assert (made.code, done.code) == (0, 0)
    assert "cck_1" in made.out
    assert api.bodies("POST /v1/projects") == [{"name": "lab"}]
    assert api.bodies("PATCH /v1/projects/lab") == [
        {
            "isolation": "hardened",
            "allowances": {"concurrency": 50, "cpu_seconds_per_minute": 0.5, "queued": None},
        }
    ]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "nothing to change was named"),
        (["--concurrency", "many"], "'many' of --concurrency is no number"),
        (["--cpu-seconds-per-minute", "nan"], "'nan' of --cpu-seconds-per-minute is no number"),
        (["--cpu-seconds-per-month", "1e400"], "'1e400' of --cpu-seconds-per-month is no number"),
        (["--queued", "1.5"], "'1.5' of --queued is no number"),
    ],
)
def test_what_cannot_be_meant_is_told_before_a_request(
    api: Api, options: list[str], told: str
) -> None:
    """With the option that has it."""
    ran = cloudcode("projects", "set", "lab", *options, url=api.url)

    assert ran.code == 1
    assert told in ran.err
    assert api.asked == []
