"""`cloudcode deliveries`: what it asks of the engine, and what it prints."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import json
from datetime import UTC, datetime, timedelta

import pytest

from tests.unit.test_cli import Api, api, cloudcode  # noqa: F401 - a fixture

DELIVERY = {
    "id": "dlv_1", "connection": "SMS", "kind": "twilio", "action": "send",
    "recipient": "+15558675310", "state": "failed", "reason": None, "attempts": 2,
    "created_at": "2010-10-29T00:00:00.000Z", "last_error": "HTTP 401: 20003",
}  # fmt: skip
ATTEMPT = {
    "attempt": 1, "at": "2010-10-29T00:00:00.000Z", "took_ms": 12, "status": 401,
    "error": "HTTP 401: 20003", "delivered": False, "message_id": None,
}  # fmt: skip
BULK = "POST /v1/deliveries:bulk"


def test_deliveries_are_listed_by_every_filter(api: Api) -> None:
    """The table says why; JSON has every field."""
    api.answer("GET /v1/deliveries", 200, {"items": [DELIVERY], "next_cursor": None})
    filters = {
        "state": "failed", "connection": "SMS", "kind": "twilio", "recipient": "+15558675310",
        "execution": "exe_1", "function": "alarm", "since": "2010-10-29", "until": "2010-10-30",
    }  # fmt: skip
    options = [word for name, value in filters.items() for word in (f"--{name}", value)]

    table = cloudcode("deliveries", "list", *options, url=api.url)
    whole = cloudcode("deliveries", "list", "--json", url=api.url)

    assert "HTTP 401: 20003" in table.out
    assert json.loads(whole.out) == {"items": [DELIVERY]}
    asked = {name: value[0] for name, value in api.asked[0][2].items()}
    assert asked == filters | {"limit": "50"}


def test_one_delivery_is_shown_with_its_attempts(api: Api) -> None:
    """As a table below it; in JSON as the engine says."""
    whole = {**DELIVERY, "payload": {"to": "+15558675310"}, "attempts_log": [ATTEMPT]}
    api.answer("GET /v1/deliveries/dlv_1", 200, whole)

    shown = cloudcode("deliveries", "show", "dlv_1", url=api.url)
    as_json = cloudcode("deliveries", "show", "dlv_1", "--json", url=api.url)

    assert "took ms" in shown.out
    assert "attempts_log" not in shown.out
    assert json.loads(as_json.out) == whole


@pytest.mark.parametrize("action", ["resend", "cancel", "hold", "release"])
def test_one_or_all_of_a_filter_are_changed(api: Api, action: str) -> None:
    """An id or a filter, never both nor neither; a dry run only counts."""
    api.answer(f"POST /v1/deliveries/dlv_1/{action}", 200, {"id": "dlv_1", "state": "queued"})
    api.answer(BULK, 200, {"count": 3})

    one = cloudcode("deliveries", action, "dlv_1", url=api.url)
    many = cloudcode("deliveries", action, "--connection", "SMS", "--kind", "twilio", url=api.url)
    dry = cloudcode("deliveries", action, "--recipient", "+1", "--dry-run", url=api.url)
    wrong = [
        cloudcode("deliveries", action, *words, url=api.url)
        for words in ([], ["dlv_1", "--connection", "SMS"], ["dlv_1", "--dry-run"])
    ]

    assert [one.code, many.code, dry.code] == [0, 0, 0]
    assert [ran.code for ran in wrong] == [1, 1, 1]
    assert api.bodies(BULK) == [
        {"action": action, "filter": {"connection": "SMS", "kind": "twilio"}, "dry_run": False},
        {"action": action, "filter": {"recipient": "+1"}, "dry_run": True},
    ]


def test_what_failed_is_recovered_since_then(api: Api) -> None:
    """How long ago, as people say it, or a time as it is."""
    api.answer(BULK, 200, {"count": 3})

    begun = datetime.now(UTC)
    ago = cloudcode("deliveries", "recover", "--since", "2h", "--connection", "SMS", url=api.url)
    since = "2010-10-29T00:00:00Z"
    then = cloudcode("deliveries", "recover", "--since", since, "--dry-run", url=api.url)

    first, second = api.bodies(BULK)
    assert (ago.code, then.code) == (0, 0)
    assert abs(datetime.fromisoformat(first["filter"].pop("ended_since")) - begun) < timedelta(
        hours=2.1
    )
    assert first == {
        "action": "resend",
        "filter": {"state": "failed", "connection": "SMS"},
        "dry_run": False,
    }
    assert second["filter"] == {"state": "failed", "ended_since": since}


def test_a_time_that_is_none_is_told_before_a_request(api: Api) -> None:
    """With the option that has it; and `recover` never guesses."""
    wrong = cloudcode("deliveries", "recover", "--since", "soon", url=api.url)
    missing = cloudcode("deliveries", "recover", url=api.url)

    assert wrong.code == 1
    assert "--since: 'soon' is no duration" in wrong.err
    assert missing.code != 0
    assert api.asked == []


def test_a_refusal_ends_with_a_failure(api: Api) -> None:
    """A conflict says why."""
    problem = {"code": "conflict", "status": 409, "detail": "it is being sent right now"}
    api.answer("POST /v1/deliveries/dlv_1/cancel", 409, problem)

    ran = cloudcode("deliveries", "cancel", "dlv_1", url=api.url)

    assert ran.code == 1
    assert "it is being sent right now" in ran.err


@pytest.mark.parametrize(
    "words", [("list",), ("release",), ("recover", "--since", "2h"), ("hold", "--dry-run")]
)
def test_a_connection_that_there_is_not_is_told_where_nothing_is_found(
    api: Api, words: tuple[str, ...]
) -> None:
    """On stderr; nothing was to do all the same, and that is what scripts read."""
    api.answer(BULK, 200, {"count": 0})
    api.answer("GET /v1/deliveries", 200, {"items": [], "next_cursor": None})
    api.answer("GET /v1/connections/SMS", 200, {"name": "SMS"})
    missing = {"code": "not_found", "status": 404, "detail": "no connection 'SSM'"}
    api.answer("GET /v1/connections/SSM", 404, missing)

    ran = {
        name: cloudcode("deliveries", *words, "--connection", name, "--json", url=api.url)
        for name in ("SSM", "SMS", "inline:mail:12345678")
    }

    assert [one.code for one in ran.values()] == [0] * 3
    assert {name for name, one in ran.items() if "no connection SSM" in one.err} == {"SSM"}
    assert len({one.out for one in ran.values()}) == 1


def test_a_key_that_may_not_see_connections_is_told_nothing(api: Api) -> None:
    """The command has done what it could."""
    api.answer(BULK, 200, {"count": 0})
    refusal = {"code": "forbidden_scope", "status": 403, "detail": "not with this key"}
    api.answer("GET /v1/connections/SMS", 403, refusal)

    ran = cloudcode("deliveries", "release", "--connection", "SMS", url=api.url)

    assert (ran.code, ran.err) == (0, "")
