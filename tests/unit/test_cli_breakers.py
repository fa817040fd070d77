"""`cloudcode breakers`, and what `dlq` asks about them."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import json

from tests.unit.test_cli import Api, api, cloudcode  # noqa: F401 - a fixture

BREAKER = {
    "id": "brk_1", "scope": "device", "function": "alarms", "version": 3, "device": "roof",
    "state": "open", "error": {"status": "cpu_exceeded"}, "failures": 5,
    "until": "2010-10-28T12:18:56.799Z", "set_aside": 7,
}  # fmt: skip


def test_breakers_are_listed_shown_and_closed(api: Api) -> None:
    """Who reads the list sees what is held back, and how much was set aside."""
    api.answer("GET /v1/breakers", 200, {"items": [BREAKER], "next_cursor": None})
    api.answer("GET /v1/breakers/brk_1", 200, BREAKER)
    api.answer("POST /v1/breakers/brk_1/close", 200, {"id": "brk_1", "state": "closed"})

    listed = cloudcode("breakers", "list", "--function", "alarms", "--json", url=api.url)
    shown = cloudcode("breakers", "show", "brk_1", "--json", url=api.url)
    closed = cloudcode("breakers", "close", "brk_1", "--json", url=api.url)

    assert json.loads(listed.out)["items"] == [BREAKER]
    assert json.loads(shown.out) == BREAKER
    assert json.loads(closed.out) == {"id": "brk_1", "state": "closed"}
    assert api.asked[0][2] == {"limit": ["50"], "function": ["alarms"]}


def test_people_read_the_last_failure_in_a_few_words(api: Api) -> None:
    """The limit and what was used of it, else the error; no JSON."""
    hit = {"name": "cpu_ms", "value": 100, "used": 102}
    limited = BREAKER | {"error": {"status": "cpu_exceeded", "name": "", "limit": hit}}
    thrown = BREAKER | {"error": {"status": "failed", "name": "TypeError", "message": "no"}}
    api.answer("GET /v1/breakers", 200, {"items": [limited, thrown], "next_cursor": None})
    api.answer("GET /v1/breakers/brk_1", 200, limited)

    listed = cloudcode("breakers", "list", url=api.url)
    shown = cloudcode("breakers", "show", "brk_1", url=api.url)

    words = " ".join(listed.out.split())
    assert "cpu_exceeded (cpu_ms 100, used 102)" in words
    assert "failed (TypeError: no)" in words
    assert "cpu_exceeded (cpu_ms 100, used 102)" in shown.out


def test_what_was_set_aside_is_found_and_redriven(api: Api) -> None:
    """By its breaker; one that is still open is refused with the engine's own words."""
    api.answer("GET /v1/dead-letters", 200, {"items": [], "next_cursor": None})
    api.answer("POST /v1/breakers/brk_1/redrive", 200, {"count": 7, "skipped": 0})
    refusal = {"status": 409, "code": "conflict", "detail": "brk_2 is open: close it first"}
    api.answer("POST /v1/breakers/brk_2/redrive", 409, refusal)

    found = cloudcode("dlq", "list", "--breaker", "brk_1", url=api.url)
    done = cloudcode("breakers", "redrive", "brk_1", "--json", url=api.url)
    counted = cloudcode("breakers", "redrive", "brk_1", "--dry-run", url=api.url)
    refused = cloudcode("breakers", "redrive", "brk_2", url=api.url)

    assert found.code == 0
    assert api.asked[0][2] == {"limit": ["50"], "breaker": ["brk_1"]}
    assert json.loads(done.out)["count"] == 7
    assert (counted.code, api.asked[2][2]) == (0, {"dry_run": ["true"]})
    assert refused.code == 1
    assert "close it first" in refused.err
