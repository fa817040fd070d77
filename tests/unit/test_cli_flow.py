"""`cloudcode deploy` with what a version declares for its queued runs, and triggers in order."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_cli import NOT_FOUND, Api, api, cloudcode  # noqa: F401 - a fixture

FLOW = {"concurrency": {"limit": 2, "key": "event.deviceId"}}


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "hello.js"
    path.write_text("export default {};", encoding="utf-8")
    return str(path)


def with_trigger(api: Api, **fields: Any) -> None:
    made = {"version": 2, "handlers": ["afterStore"], "deployed": True}
    trigger = {"id": "trg_1", "product": "weather", "on": "write", "keys": []}
    api.answer("GET /v1/functions/hello", 200, {"live": [{"version": 1, "percent": 100}]})
    api.answer("POST /v1/functions/hello/versions", 201, made)
    api.answer("GET /v1/products/weather", 200, {"id": "prd_1", "name": "weather"})
    api.answer("GET /v1/triggers", 200, {"items": [trigger | fields], "next_cursor": None})
    api.answer("POST /v1/triggers", 201, trigger)


def test_rules_are_sent_as_they_were_written(api: Api, file: str, tmp_path: Path) -> None:
    """As JSON on the command line, or from a file."""
    (tmp_path / "flow.json").write_text(json.dumps(FLOW), encoding="utf-8")
    made = {"name": "hello", "version": 1, "handlers": ["queue"], "deployed": True}
    api.answer("GET /v1/functions/hello", 404, NOT_FOUND)
    api.answer("POST /v1/functions", 201, made)

    rules = ["--retries", '{"max_attempts": 5}', "--flow", f"@{tmp_path / 'flow.json'}"]
    ran = cloudcode("deploy", file, *rules, "--queue", '{"max_batch_size": 50}', url=api.url)

    assert ran.code == 0, ran.err
    (body,) = api.bodies("POST /v1/functions")
    assert body["retries"] == {"max_attempts": 5}
    assert body["flow"] == FLOW
    assert body["queue"] == {"max_batch_size": 50}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--flow", "{"], "--flow is not JSON"),
        (["--queue", "[1]"], "--queue must be a JSON object"),
        (["--retries", "@/none.json"], "--retries @/none.json: No such file"),
        (["--order", "device"], "need --product"),
    ],
)
def test_a_rule_that_is_none_is_told_before_a_request(
    api: Api, file: str, options: list[str], said: str
) -> None:
    """With the option that has it."""
    ran = cloudcode("deploy", file, *options, url=api.url)

    assert ran.code != 0
    assert said in ran.err
    assert api.asked == []


ORDERED = {"order": "device", "lateness_seconds": 1.5}
IN_ORDER = ("--product", "weather", "--order", "device", "--lateness", "1.5")


@pytest.mark.parametrize(("there", "count"), [({"keys": ["other"]}, 1), (ORDERED, 0)])
def test_a_trigger_in_order_is_made_once(
    api: Api, file: str, there: dict[str, Any], count: int
) -> None:
    """One that is there with the same order is kept."""
    with_trigger(api, **there)

    ran = cloudcode("deploy", file, *IN_ORDER, url=api.url)

    assert ran.code == 0, ran.err
    wanted = {"function": "hello", "product": "weather", "on": "write", "keys": []} | ORDERED
    assert api.bodies("POST /v1/triggers") == [wanted] * count


def test_a_trigger_with_another_order_is_in_the_way(api: Api, file: str) -> None:
    """A second one would run the function twice for each write."""
    with_trigger(api, order=None, lateness_seconds=None)

    ran = cloudcode("deploy", file, *IN_ORDER, url=api.url)

    assert ran.code != 0
    assert "trg_1 runs hello on the same writes in another order" in ran.err
    assert not api.bodies("POST /v1/triggers")
