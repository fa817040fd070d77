"""`cloudcode jobs`, `dlq`, `replay` and `cancel`: what they ask of the engine."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import json

import pytest

from tests.unit.test_cli import Api, api, cloudcode  # noqa: F401 - a fixture


def test_a_job_is_made_with_what_was_given(api: Api) -> None:
    """Durations as people write them; what is left out is the engine's to say."""
    made = {"id": "job_1", "status": "queued", "execution_id": "exe_1"}
    api.answer("POST /v1/jobs", 201, made)
    options = ["--delay", "5m", "--queue", "images", "--priority", "high", "--key", "k"]
    waits = ["--max-attempts", "5", "--backoff", "fixed", "--base", "0.5", "--ttl", "1h"]

    plain = cloudcode("jobs", "create", "report", "--json", url=api.url)
    whole = cloudcode("jobs", "create", "report", '{"a": 1}', *options, *waits, url=api.url)

    first, second = api.bodies("POST /v1/jobs")
    assert (plain.code, whole.code, json.loads(plain.out)) == (0, 0, made)
    assert first == {
        "function": "report", "payload": None, "queue": "default", "priority": "default",
    }  # fmt: skip
    assert second == {
        "function": "report", "payload": {"a": 1}, "queue": "images", "priority": "high",
        "delay_seconds": 300, "idempotency_key": "k", "max_attempts": 5, "ttl_seconds": 3_600,
        "backoff": {"kind": "fixed", "base_seconds": 0.5},
    }  # fmt: skip


def test_a_duration_that_is_none_is_told_before_a_request(api: Api) -> None:
    """With the option that has it."""
    ran = cloudcode("jobs", "create", "report", "--delay", "soon", url=api.url)

    assert ran.code == 1
    assert "--delay: 'soon' is no duration" in ran.err
    assert api.asked == []


def test_jobs_are_listed_shown_and_cancelled(api: Api) -> None:
    """A job can be cancelled by either command."""
    job = {"id": "job_1", "function": "report", "status": "queued", "attempts": 1}
    api.answer("GET /v1/jobs", 200, {"items": [job], "next_cursor": None})
    api.answer("GET /v1/jobs/job_1", 200, job)
    api.answer("DELETE /v1/jobs/job_1", 204, None)

    listed = cloudcode("jobs", "list", "--status", "queued", url=api.url)
    shown = cloudcode("jobs", "show", "job_1", "--wait", "10", "--json", url=api.url)
    gone = [
        cloudcode(*command, "job_1", url=api.url) for command in (("jobs", "cancel"), ("cancel",))
    ]

    assert "job_1" in listed.out
    assert json.loads(shown.out) == job
    assert [one.code for one in gone] == [0, 0]
    assert [query for _, _, query, _ in api.asked[:2]] == [
        {"limit": ["50"], "status": ["queued"]}, {"wait": ["10.0"]},
    ]  # fmt: skip


def test_dead_letters_are_redriven_one_or_all_of_a_filter(api: Api) -> None:
    """`--dry-run` only counts."""
    api.answer("POST /v1/dead-letters/dlq_1/redrive", 202, {"id": "dlq_1"})
    api.answer("POST /v1/dead-letters:redrive", 200, {"count": 2})

    for options in (
        ["dlq_1"],
        ["dlq_1", "--dry-run"],
        ["--function", "report", "--queue", "images"],
        ["--all", "--dry-run"],
    ):
        assert cloudcode("dlq", "redrive", *options, url=api.url).code == 0

    assert api.bodies("POST /v1/dead-letters:redrive") == [
        {"ids": ["dlq_1"], "dry_run": True},
        {"filter": {"function": "report", "queue": "images"}, "dry_run": False},
        {"filter": {}, "dry_run": True},
    ]
    assert len(api.bodies("POST /v1/dead-letters/dlq_1/redrive")) == 1


def test_dead_letters_are_seen_edited_and_thrown_away(api: Api) -> None:
    """A filter is the query of the request."""
    letter = {"id": "dlq_1", "function": "report", "payload": 1}
    api.answer("GET /v1/dead-letters", 200, {"items": [letter], "next_cursor": None})
    api.answer("GET /v1/dead-letters/dlq_1", 200, letter)
    api.answer("PATCH /v1/dead-letters/dlq_1", 200, letter | {"payload": {"a": 1}})
    api.answer("DELETE /v1/dead-letters/dlq_1", 204, None)
    api.answer("DELETE /v1/dead-letters", 200, {"count": 1})

    for words in (
        ["list", "--function", "report"], ["show", "dlq_1"], ["edit", "dlq_1", '{"a": 1}'],
        ["delete", "dlq_1"], ["delete", "--queue", "images", "--dry-run"], ["delete", "--all"],
    ):  # fmt: skip
        ran = cloudcode("dlq", *words, url=api.url)
        assert ran.code == 0, ran.err

    assert api.bodies("PATCH /v1/dead-letters/dlq_1") == [{"payload": {"a": 1}}]
    assert [query for method, path, query, _ in api.asked if method == "DELETE"] == [
        {},
        {"queue": ["images"], "all": ["false"], "dry_run": ["true"]},
        {"all": ["true"], "dry_run": ["false"]},
    ]


def test_runs_are_replayed_and_cancelled_one_or_all_of_a_filter(api: Api) -> None:
    """Both commands take an id or a filter."""
    for action in ("replay", "cancel"):
        api.answer(f"POST /v1/executions/exe_1/{action}", 200, {"execution_id": "exe_2"})
    api.answer("POST /v1/executions:bulk", 200, {"count": 3})

    for words in (
        ["replay", "exe_1"], ["cancel", "exe_1"],
        ["replay", "--function", "report", "--status", "failed", "--dry-run"],
        ["cancel", "--device", "dev_1", "--until", "2010-10-29"],
    ):  # fmt: skip
        assert cloudcode(*words, url=api.url).code == 0

    assert api.bodies("POST /v1/executions:bulk") == [
        {
            "action": "replay", "filter": {"function": "report", "status": "failed"},
            "dry_run": True,
        },
        {
            "action": "cancel", "filter": {"device": "dev_1", "until": "2010-10-29"},
            "dry_run": False,
        },
    ]  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        ["dlq", "redrive"], ["dlq", "redrive", "dlq_1", "--all"], ["dlq", "delete"],
        ["dlq", "delete", "--all", "--queue", "a"], ["replay"], ["cancel"],
        ["replay", "exe_1", "--status", "failed"], ["cancel", "exe_1", "--dry-run"],
    ],
)  # fmt: skip
def test_it_has_to_be_said_what_is_meant(api: Api, words: list[str]) -> None:
    """Nothing, or two things at once, is a mistake; no request is made."""
    ran = cloudcode(*words, url=api.url)

    assert ran.code == 1
    assert "name " in ran.err or "dry run" in ran.err
    assert api.asked == []
