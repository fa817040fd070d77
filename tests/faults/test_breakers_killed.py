"""The engine is killed while a function and a device are held back: what waits, waits on."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from engine.breaker_rules import HARM_MAX, OPEN_MS
from tests.conftest import Engine

KILLS = "export default { async job(given) { if (given === 'kill') for (;;); return given; } }"
SENSITIVE = """export default { async afterStore(event, env) {
  if (event.data.values.some((one) => one.value === "poison")) for (;;);
} }"""
SHORT = {"cpu_ms": 50, "wall_ms": 20_000}
RUNS = 20
EVENTS = 10


def breaker_of(engine: Engine, function: str) -> dict[str, Any]:
    """Wait until it has one."""
    path = f"/v1/breakers?function={function}"
    return engine.until(lambda: engine.ok("GET", path)["items"])[0]


@pytest.mark.slow
def test_what_waits_for_a_breaker_is_there_once_after_a_kill(
    own_engine: Callable[..., Engine],
) -> None:
    """The breaker is, too: nothing runs before it is closed, and then each run does, once."""
    engine = own_engine()
    engine.deploy("held", KILLS, limits=SHORT)
    for _ in range(HARM_MAX):
        assert engine.invoke("held", "kill").status_code == 502
    breaker = breaker_of(engine, "held")
    path = "/v1/functions/held/invoke"
    for number in range(RUNS):
        answer = engine.client.post(path, json=number, headers={"prefer": "respond-async"})
        assert answer.status_code == 202
        if number == RUNS // 2:
            engine.kill()  # some are put back, of some that is on its way
            engine.start()

    # By a plain call over the wire: the short way of the server, with its Retry-After.
    refused = engine.invoke("held", "fine")
    assert (refused.status_code, refused.json()["code"]) == (503, "breaker_open")
    assert 1 <= int(refused.headers["retry-after"]) <= OPEN_MS // 1000
    assert len(engine.executions(function="held", status="queued")) == RUNS

    engine.ok("POST", f"/v1/breakers/{breaker['id']}/close")
    engine.settled()
    statuses = Counter(run["status"] for run in engine.executions(function="held"))
    assert statuses == {"cpu_exceeded": HARM_MAX, "succeeded": RUNS}
    assert engine.invoke("held", "fine").json() == "fine"


@pytest.mark.slow
def test_each_event_of_a_device_that_is_set_aside_is_kept_once(
    own_engine: Callable[..., Engine],
) -> None:
    """Killed before, in the middle of, or after the commits that set them aside."""
    engine = own_engine()
    engine.deploy("sensitive", SENSITIVE, limits=SHORT)
    poisonous = engine.device("boiler")
    engine.ok("POST", "/v1/triggers", {"function": "sensitive", "product": "boiler"})
    for _ in range(HARM_MAX):
        write(engine, poisonous)
    breaker = breaker_of(engine, "sensitive")
    assert breaker["device_id"] == poisonous["id"]

    for number in range(EVENTS):
        write(engine, poisonous)
        if number % 5 == 4:
            engine.kill()
            engine.start()
    engine.settled()

    query = {"breaker": breaker["id"], "limit": 200}
    letters = engine.ok("GET", "/v1/dead-letters", params=query)["items"]
    runs = engine.executions(function="sensitive")
    assert Counter(run["status"] for run in runs) == {
        "cpu_exceeded": HARM_MAX,
        "skipped": EVENTS,
    }
    assert {letter["execution_id"] for letter in letters} == {
        run["id"] for run in runs if run["status"] == "skipped"
    }
    assert len(letters) == EVENTS


def write(engine: Engine, device: dict[str, Any]) -> None:
    body = {"values": [{"key": "temp", "value": "poison"}]}
    engine.ok("POST", f"/v1/devices/{device['id']}/values", body)
