"""`cloudcode schedule`: what it asks of the engine, and what people see."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import json

from tests.unit.test_cli import Api, api, cloudcode  # noqa: F401 - a fixture

SHOWN = {
    "id": "sch_1", "name": "morning", "function": "report", "cron": "0 7 * * *", "every": None,
    "at": None, "timezone": "Europe/Madrid", "next_at": "2026-01-01T06:00:00.000Z", "paused": False,
}  # fmt: skip
DUE = {
    "at": "2026-03-29T01:00:00.000Z", "local": "2026-03-29T03:00:00+02:00",
    "timezone": "Europe/Madrid", "note": "gap: 02:30 does not exist, runs at 03:00",
}  # fmt: skip


def test_a_schedule_is_made_with_what_was_given(api: Api) -> None:
    """What is left out is the engine's to say."""
    api.answer("POST /v1/schedules", 201, SHOWN)
    options = ["--timezone", "Europe/Madrid", "--name", "morning", "--overlap", "buffer_one"]
    more = ["--payload", '{"to": "ops"}', "--jitter", "30s", "--product", "weather", "--seconds"]

    plain = cloudcode("schedule", "create", "report", "--every", "5m", "--json", url=api.url)
    whole = cloudcode(
        "schedule", "create", "report", "--cron", "0 0 7 * * *", *options, *more, url=api.url
    )

    assert (plain.code, whole.code, json.loads(plain.out)) == (0, 0, SHOWN)
    assert api.bodies("POST /v1/schedules") == [
        {"function": "report", "every": "5m"},
        {
            "function": "report", "cron": "0 0 7 * * *", "timezone": "Europe/Madrid",
            "name": "morning", "overlap": "buffer_one", "payload": {"to": "ops"}, "jitter": "30s",
            "device_local": {"product": "weather"}, "seconds": True,
        },
    ]  # fmt: skip


def test_a_schedule_is_made_with_what_follows_its_failures(api: Api) -> None:
    """And how its runs are queued; the number of failures belongs to a function."""
    api.answer("POST /v1/schedules", 201, SHOWN)
    line = ["schedule", "create", "report", "--cron", "@daily"]
    clocks = ["--dst-gap", "skip", "--dst-fold", "both"]
    runs = ["--max-attempts", "3", "--priority", "low", "--queue", "mail"]
    failures = ["--pause-on-failure", "5", "--on-failure", "alarm", "--on-failure-times", "2"]

    whole = cloudcode(
        *line, *clocks, *runs, *failures, "--on-recovery", "calm", "--json", url=api.url
    )
    short = cloudcode(*line, "--on-failure", "alarm", "--dst-gap", "skip", url=api.url)
    alone = cloudcode(*line, "--on-failure-times", "2", url=api.url)

    assert (whole.code, short.code, alone.code) == (0, 0, 1)
    assert "--on-failure" in alone.err
    assert api.bodies("POST /v1/schedules") == [
        {
            "function": "report", "cron": "@daily", "dst": {"gap": "skip", "fold": "both"},
            "max_attempts": 3, "priority": "low", "queue": "mail", "pause_on_failure": 5,
            "on_failure": {"function": "alarm", "times": 2}, "on_recovery": {"function": "calm"},
        },
        {
            "function": "report", "cron": "@daily", "dst": {"gap": "skip"},
            "on_failure": {"function": "alarm"},
        },
    ]  # fmt: skip


def test_a_payload_that_is_no_json_is_told_before_a_request(api: Api) -> None:
    """With an example."""
    ran = cloudcode("schedule", "create", "report", "--payload", "{", url=api.url)

    assert ran.code == 1
    assert "--payload is not JSON" in ran.err
    assert api.asked == []


def test_a_list_says_when(api: Api) -> None:
    """Whichever of the three it is."""
    by_interval = SHOWN | {"id": "sch_2", "cron": None, "every": "5m"}
    once = SHOWN | {"id": "sch_3", "cron": None, "at": "2030-01-31T07:00:00"}
    answer = {"items": [SHOWN, by_interval, once], "next_cursor": None}
    api.answer("GET /v1/schedules", 200, answer)

    ran = cloudcode("schedule", "list", "--function", "report", url=api.url)

    assert ran.code == 0
    for words in ("0 7 * * *", "every 5m", "at 2030-01-31T07:00:00", "Europe/Madrid"):
        assert words in ran.out
    assert api.asked[0][2] == {"function": ["report"], "limit": ["50"]}


def test_a_preview_is_of_a_schedule_or_of_a_line(api: Api) -> None:
    """With what clock changes do; skipped times are said beside the table."""
    skipped = {"local": "2026-03-29T02:30:00", "timezone": "Europe/Madrid", "note": "gap: ..."}
    api.answer("GET /v1/schedules/morning/preview", 200, {"items": [DUE], "skipped": [skipped]})
    api.answer("POST /v1/schedules/preview", 200, {"items": [DUE], "skipped": []})
    line = ["--cron", "30 2 * * *", "--timezone", "Europe/Madrid"]

    known = cloudcode("schedule", "preview", "morning", "--from", "2026-03-29", url=api.url)
    unknown = cloudcode("schedule", "preview", *line, "--limit", "3", "--json", url=api.url)
    neither = cloudcode("schedule", "preview", url=api.url)

    assert DUE["note"] in known.out
    assert "skipped: 2026-03-29T02:30:00" in known.err
    assert json.loads(unknown.out) == {"items": [DUE], "skipped": []}
    assert api.asked[0][2] == {"from": ["2026-03-29"], "limit": ["10"]}
    assert api.bodies("POST /v1/schedules/preview") == [
        {"cron": "30 2 * * *", "timezone": "Europe/Madrid", "limit": 3}
    ]
    assert (neither.code, "--cron" in neither.err) == (1, True)


def test_a_schedule_is_shown_held_and_run_by_hand(api: Api) -> None:
    """Each with one request."""
    path = "/v1/schedules/morning"
    item = {
        "at": DUE["at"], "local": DUE["local"], "device_id": None, "outcome": "buffered",
        "execution_id": None,
    }  # fmt: skip
    api.answer(f"GET {path}", 200, SHOWN)
    api.answer(f"POST {path}/pause", 200, SHOWN | {"paused": True})
    api.answer(f"POST {path}/resume", 200, SHOWN)
    api.answer(f"POST {path}/trigger", 202, {"execution_id": "exe_1", "status": "queued"})
    api.answer(f"POST {path}/backfill", 200, {"dry_run": True, "count": 1, "items": [item]})
    api.answer(f"DELETE {path}", 204, None)
    days = ["--from", "2026-03-01", "--to", "2026-03-08", "--dry-run"]

    ran = [
        cloudcode("schedule", *command, url=api.url)
        for command in (
            ("show", "morning"), ("pause", "morning", "--reason", "closed"),
            ("resume", "morning"), ("trigger", "morning", "--force"),
            ("backfill", "morning", *days), ("delete", "morning"),
        )
    ]  # fmt: skip

    assert [one.code for one in ran] == [0] * 6
    assert "exe_1" in ran[3].out
    assert "buffered" in ran[4].out
    assert api.bodies(f"POST {path}/pause") == [{"reason": "closed"}]
    assert api.asked[3][2] == {"force": ["true"]}
    assert api.bodies(f"POST {path}/backfill") == [
        {"from": "2026-03-01", "to": "2026-03-08", "dry_run": True}
    ]
