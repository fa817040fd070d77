"""Guest programs that attack the engine's time and memory; each says how it must end.

While each runs, and after it, another function of the same project answers as ever.
"""

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.stacks import authors_stack
from runtimes.contract import GuestError

GUESTS = sorted((Path(__file__).parent / "guests").glob("*.js"))
EXPECTATION = re.compile(
    r"// expect: (?P<outcome>\w+)(?: (?P<limit>(?!limits=)\w+))?(?: limits=(?P<limits>\S+))?"
)
STATUS = {"succeeded": 200, "timed_out": 504}


@pytest.fixture(scope="module")
def neighbour(engine: Any) -> str:
    engine.deploy("neighbour", "function main(p, cb) { cb(null, p + 1) }")
    return "neighbour"


@pytest.mark.slow
@pytest.mark.parametrize("guest", GUESTS, ids=lambda path: path.stem)
def test_guest_ends_as_it_says(engine: Any, neighbour: str, guest: Path) -> None:
    """The run ends with the outcome and the limit of its first line; the neighbour is unharmed."""
    source = guest.read_text()
    expected = EXPECTATION.match(source)
    assert expected is not None, guest
    limits = dict(part.split("=") for part in (expected["limits"] or "").split(",") if part)
    name = guest.stem
    engine.deploy(name, source, limits={key: int(value) for key, value in limits.items()})

    answer = engine.invoke(name)
    after = engine.invoke(neighbour, 41)

    execution = engine.executions(function=name)[0]
    assert execution["status"] == expected["outcome"], answer.text
    assert answer.status_code == STATUS.get(expected["outcome"], 502), answer.text
    if expected["limit"]:
        assert execution["limit"]["name"] == expected["limit"]
        assert execution["limit"]["used"] >= execution["limit"]["value"]
    assert after.json() == 42


def test_log_before_a_kill_is_kept(engine: Any) -> None:
    """What a function logged before it was stopped can be read."""
    engine.deploy("says_and_spins", "function main() { console.log('last words'); for (;;); }")

    execution = engine.invoke("says_and_spins").json()["execution_id"]

    lines = engine.ok("GET", f"/v1/executions/{execution}/logs")["items"]
    assert [line["msg"] for line in lines] == ["last words"]


@pytest.mark.slow
def test_wall_time_holds_beside_a_busy_neighbour(engine: Any) -> None:
    """A run that never answers ends in time, although its isolate is never idle."""
    source = "function main(p, cb) { if (p !== 'never') cb(null, p); }"
    engine.deploy("busy", source, limits={"wall_ms": 500, "cpu_ms": 200})
    ended = threading.Event()

    def keep_busy() -> None:
        while not ended.is_set():
            httpx.post(f"{engine.url}/v1/functions/busy/invoke", headers=engine.headers, json=1)

    with ThreadPoolExecutor(6) as pool:
        for _ in range(6):
            pool.submit(keep_busy)
        execution = engine.invoke("busy", "never").json()["execution_id"]
        ended.set()

    record = engine.ok("GET", f"/v1/executions/{execution}")
    assert record["status"] == "timed_out"
    assert record["wall_ms"] < 2_000


def test_a_forged_stack_costs_the_engine_nothing() -> None:
    """What a guest puts into its stack is searched in time that grows with its length."""
    started = time.monotonic()

    authors_stack(
        GuestError(name="Error", message="x", stack="1:" * 4000),
        '{"files":[{"name":"main.js","prefix_columns":0}],"main":"main.js"}',
    )

    assert time.monotonic() - started < 0.5
