"""`cloudcode events` and `explain`: what they ask of the engine, and what they show of it."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import json
from typing import Any

from tests.unit.test_cli import Api, api, cloudcode  # noqa: F401 - a fixture

ITEM = {"function": "alarm", "outcome": "skipped", "reason": "debounced", "version": None,
        "detail": "exe_2 came after it"}  # fmt: skip


def explained(*items: dict[str, Any]) -> dict[str, Any]:
    return {"summary": "Nothing ran. Skipped: alarm (debounced).", "items": list(items)}


def test_an_event_is_explained_in_a_sentence_and_a_table(api: Api) -> None:
    """Each function with what became of it, and why."""
    api.answer("GET /v1/events/evt_1/explain", 200, explained(ITEM))

    ran = cloudcode("explain", "evt_1", url=api.url)

    assert ran.code == 0
    assert ran.out.startswith("Nothing ran. Skipped: alarm (debounced).")
    assert all(word in ran.out for word in ("outcome", "debounced", "exe_2 came after it"))


def test_without_functions_the_sentence_is_all(api: Api) -> None:
    """It says what is missing."""
    api.answer("GET /v1/events/evt_1/explain", 200, explained())

    ran = cloudcode("explain", "evt_1", url=api.url)

    assert ran.out.splitlines() == ["Nothing ran. Skipped: alarm (debounced)."]


def test_an_explanation_as_json_is_one_document(api: Api) -> None:
    """All of it, as the engine gave it."""
    api.answer("GET /v1/events/evt_1/explain", 200, explained(ITEM))

    ran = cloudcode("explain", "evt_1", "--json", url=api.url)

    assert json.loads(ran.out) == explained(ITEM)


def test_events_are_listed(api: Api) -> None:
    """Of a device, since a time."""
    event = {"id": "evt_1", "received_at": "2010-10-29T00:00:00.000Z", "device_id": "dev_1",
             "source": "http", "values": [{"key": "temp", "value": 71}]}  # fmt: skip
    api.answer("GET /v1/events", 200, {"items": [event], "next_cursor": None})

    ran = cloudcode("events", "--device", "dev_1", "--since", "2010-10-29", url=api.url)

    assert all(word in ran.out for word in ("evt_1", "dev_1", "temp"))
    assert api.asked[0][2] == {"limit": ["50"], "device": ["dev_1"], "since": ["2010-10-29"]}
