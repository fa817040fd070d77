"""Guest programs that attack the engine's time and memory; each says how it must end.

While each runs, and after it, another function of the same project answers as ever.
"""

import re
from pathlib import Path
from typing import Any

import pytest

GUESTS = sorted((Path(__file__).parent / "guests").glob("*.js"))
EXPECTATION = re.compile(
    r"// expect: (?P<outcome>\w+)(?: (?P<limit>\w+))?(?: limits=(?P<limits>\S+))?"
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
