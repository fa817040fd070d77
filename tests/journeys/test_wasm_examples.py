"""The examples of WebAssembly: built from their sources, deployed and used as their README says.

Each test deploys what it needs; names begin with `wx-`.
"""

import asyncio
import base64
import itertools
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from examples.slack_stand_in import SlackStandIn
from tests.standins.http_server import Received, answer, http_server
from tests.standins.wasm_toolchains import (
    assemblyscript_module,
    c_module,
    rust_module,
    wat_module,
)

pytestmark = pytest.mark.slow  # each deploys a module, and the engine compiles it anew

EXAMPLES: Final = Path(__file__).parents[2] / "examples" / "wasm"

# Asks the engine what it was given, and gives back what the engine answers.
ECHO: Final = """
(module
  (import "engine" "call" (func $call (param i32 i32) (result i64)))
  (memory (export "memory") 4)
  (global $free (mut i32) (i32.const 1024))
  (func (export "alloc") (param $size i32) (result i32)
    (global.get $free)
    (global.set $free (i32.add (global.get $free) (local.get $size))))
  (func (export "handle") (param $at i32) (param $length i32) (result i64)
    (call $call (local.get $at) (local.get $length))))
"""


def threshold() -> bytes:
    return wat_module(EXAMPLES / "wat" / "threshold.wat")


def rolling_mean() -> bytes:
    return c_module(EXAMPLES / "c" / "rolling_mean.c", "-mexec-model=reactor", "-Wall", "-Werror")


def report() -> bytes:
    return c_module(EXAMPLES / "c" / "report.c", "-Wall", "-Werror")


def debounce() -> bytes:
    return assemblyscript_module(EXAMPLES / "assemblyscript" / "debounce.ts")


def anomaly() -> bytes:
    return rust_module(EXAMPLES / "rust" / "anomaly.rs", command=False)


class Yard:
    """A product with one device, and whatever functions a test deploys."""

    def __init__(self, engine: Any, number: int) -> None:
        self.engine = engine
        self.number = number
        self.product = f"wx-boiler-{number}"
        self.device = engine.device(self.product)

    def deploy(self, name: str, module: bytes, **fields: Any) -> str:
        """Deploy a module; `keys` among the fields: run it on writes of these."""
        keys = fields.pop("keys", None)
        function = f"wx-{name}-{self.number}"
        body = {"name": function, "runtime": "wasm", "wasm": base64.b64encode(module).decode()}
        self.engine.ok("POST", "/v1/functions", body | fields)
        if keys is not None:
            trigger = {"function": function, "product": self.product, "keys": keys}
            self.engine.ok("POST", "/v1/triggers", trigger)
        return function

    def ask(self, function: str, params: Any = None) -> Any:
        """Invoke and return the result."""
        found = self.engine.invoke(function, params)
        assert found.status_code == 200, found.text
        return found.json()

    def write(self, key: str, *values: Any, at: str = "") -> dict[str, Any]:
        """Write the values in one event and return the one run that it caused, ended."""
        (execution,) = self.store(key, *values, at=at)
        path = f"/v1/executions/{execution}"
        waits = {"queued", "running"}
        return self.engine.until(
            lambda: (found := self.engine.ok("GET", path))["status"] not in waits and found
        )

    def store(self, key: str, *values: Any, at: str = "") -> list[str]:
        """Write the values in one event and return the runs that it caused."""
        when = {"datetime": at} if at else {}
        body = {"values": [{"key": key, "value": value, **when} for value in values]}
        path = f"/v1/devices/{self.device['id']}/values"
        return self.engine.ok("POST", path, body)["executions"]

    def stored(self, key: str) -> list[dict[str, Any]]:
        """Return what is stored of a resource, oldest first."""
        path = f"/v1/devices/{self.device['id']}/values"
        return self.engine.ok("GET", path, params={"key": key, "limit": 200})["items"][::-1]

    def values(self, key: str) -> list[Any]:
        return [item["value"] for item in self.stored(key)]

    def log(self, execution: dict[str, Any]) -> list[tuple[str, str]]:
        lines = self.engine.ok("GET", f"/v1/executions/{execution['id']}/logs")["items"]
        return [(line["level"], line["msg"]) for line in lines]

    def newest(self, function: str) -> dict[str, Any]:
        return self.engine.executions(function=function)[0]


_numbers = itertools.count(1)


@pytest.fixture
def yard(engine: Any) -> Yard:
    return Yard(engine, next(_numbers))


@pytest.fixture
def slack(engine: Any) -> Iterator[SlackStandIn]:
    with SlackStandIn() as stand_in:
        credentials = {"webhook_url": stand_in.webhook_url}
        connection = {"kind": "slack", "credentials": credentials}
        engine.ok("PUT", "/v1/connections/ALERTS", connection)
        yield stand_in
        engine.ok("DELETE", "/v1/connections/ALERTS")


# threshold.wat


@pytest.mark.parametrize(
    ("event", "result"),
    [
        ({"value": 31}, True),
        ({"value": 30}, False),
        ({"value": 30.000001}, True),
        ({"value": -31.5}, False),
        ({"note": '"value":99', "value": 1}, False),
        ({"data": {"values": [{"key": "temperature", "value": 31}]}}, True),
        ({"value": "hot"}, None),
        ({}, None),
        (None, None),
        ({"note": "x" * 200_000, "value": 31}, True),  # more than the memory it begins with
    ],
)
def test_threshold_answers_by_the_first_number(yard: Yard, event: Any, result: Any) -> None:
    """Above 30, not above it, or no number that it understands."""
    function = yard.deploy("threshold", threshold())

    found = yard.ask(function, event)

    assert found is result


@pytest.mark.parametrize("reuse", [False, True])
def test_threshold_warns_on_a_write(yard: Yard, reuse: bool) -> None:
    """The event of a device reaches it, and its log has a level."""
    yard.deploy("threshold", threshold(), keys=["temperature"], reuse=reuse)

    cool, hot = yard.write("temperature", 12.5), yard.write("temperature", 48)

    assert [cool["status"], hot["status"]] == ["succeeded", "succeeded"]
    assert yard.log(cool) == []
    assert yard.log(hot) == [("warn", "above the threshold")]


# rolling_mean.c


@pytest.mark.parametrize("reuse", [False, True])
def test_rolling_mean_follows_the_newest_values(yard: Yard, reuse: bool) -> None:
    """Of the last three, each at the time of its newest; what is no number does not count."""
    variables = {"WINDOW": "3"}
    yard.deploy("mean", rolling_mean(), keys=["temperature"], variables=variables, reuse=reuse)
    times = [f"2026-03-01T00:00:0{second}.000Z" for second in range(5)]

    runs = [
        yard.write("temperature", value, at=at)
        for value, at in zip([1, 0.5, {"broken": [1, '}"']}, 4.25, -2e2], times, strict=True)
    ]

    means = yard.stored("temperature_mean")
    assert [run["status"] for run in runs] == ["succeeded"] * 5
    assert [mean["value"] for mean in means] == [1, 0.75, 0.75, 2.375, -97.875]
    assert [mean["datetime"] for mean in means] == [times[0], times[1], times[1], *times[3:]]


def test_rolling_mean_takes_every_number(yard: Yard) -> None:
    """What it writes reads back as the same number, whatever digits it takes."""
    yard.deploy("mean", rolling_mean(), keys=["temperature"], variables={"WINDOW": "1"})
    numbers = [0.1, 1 / 3, -1e-7, 123456789012345680, 5e-324, 1.7976931348623157e308]

    for second, number in enumerate(numbers):
        yard.write("temperature", number, at=f"2026-03-01T00:00:0{second}.000Z")

    assert yard.values("temperature_mean") == numbers


def test_rolling_mean_of_a_strange_device_fails_with_the_reason(yard: Yard) -> None:
    """What the engine answers to a host call that it refuses is in the log, then the run traps."""
    function = yard.deploy("mean", rolling_mean())

    found = yard.engine.invoke(function, {"deviceId": 'dev_"none"'})

    assert found.status_code == 502
    run = yard.newest(function)
    ((level, line),) = yard.log(run)
    assert run["status"] == "failed"
    assert level == "error"
    assert 'dev_"none"' in line
    assert "engine_fail" in run["error"]["stack"]


# report.c


def test_report_sums_up_an_event(yard: Yard) -> None:
    """Stdin in, stdout out, stderr into the log, a variable from the environment."""
    function = yard.deploy("report", report(), variables={"LIMIT": "22"})
    values = [{"value": 21.5}, {"value": "n/a"}, {"key": 'é "t"\n\t😀', "value": 24}, {"value": -3}]

    found = yard.ask(function, {"values": values})

    assert found == {"count": 3, "over": 1, "least": -3, "most": 24, "mean": 42.5 / 3}
    assert yard.log(yard.newest(function)) == [
        ("info", 'é "t"'),
        ("info", "\t😀 is 24, over 22"),
    ]


def test_report_takes_what_devices_write(yard: Yard) -> None:
    """A device's event has its values in `data`."""
    function = yard.deploy("report", report(), keys=[], variables={"LIMIT": "80"})

    run = yard.write("pressure", 81, 79)

    assert run["status"] == "succeeded"
    assert yard.log(run) == [("info", "pressure is 81, over 80")]
    assert yard.ask(function, {"data": {"values": []}})["mean"] is None


def test_report_fails_by_its_exit_status(yard: Yard) -> None:
    """The status and the last line of stderr say why."""
    function = yard.deploy("report", report())

    found = yard.engine.invoke(function, {"nothing": "here"})

    assert found.status_code == 502
    error = yard.newest(function)["error"]
    assert error["name"] == "ExitError"
    assert "exit status 1" in error["message"]
    assert "the event has no values" in error["message"]


# debounce.ts


@pytest.mark.parametrize("reuse", [False, True])
def test_debounce_says_each_change_once(yard: Yard, slack: SlackStandIn, reuse: bool) -> None:
    """On at 80, off at 75, and nothing in between, nor for what is no number."""
    yard.deploy("debounce", debounce(), keys=["temperature"], reuse=reuse)

    runs = [yard.write("temperature", value) for value in [79, 80.5, 78, 99, "?", 76, 75, 79]]

    yard.engine.until(lambda: len(slack.messages) >= 2)
    texts = [f"{yard.product} is too hot: 80.5", f"{yard.product} is cool again: 75"]
    assert [run["status"] for run in runs] == ["succeeded"] * 8
    assert [message["text"] for message in slack.messages] == texts
    assert yard.values("too_hot") == [True, False]
    assert [yard.log(run) for run in runs if yard.log(run)] == [
        [("warn", texts[0])],
        [("info", texts[1])],
    ]


def test_debounce_judges_a_batch_by_its_end(yard: Yard, slack: SlackStandIn) -> None:
    """Values of one event that go up and down again are no change; variables move the lines."""
    lines = {"ON_AT": "10.5", "OFF_AT": "-1e1"}
    yard.deploy("debounce", debounce(), keys=["temperature"], variables=lines)

    yard.write("temperature", 99, -50)
    yard.write("temperature", -50, 11)

    yard.engine.until(lambda: slack.messages)
    assert [message["text"] for message in slack.messages] == [f"{yard.product} is too hot: 11"]
    assert yard.values("too_hot") == [True]


def test_debounce_without_its_connection_changes_nothing(yard: Yard) -> None:
    """A message that cannot be sent fails the run by `abort`, and its write is not kept."""
    yard.deploy("debounce", debounce(), keys=["temperature"])

    run = yard.write("temperature", 99)

    assert run["status"] == "failed"
    assert yard.values("too_hot") == []
    *_, (level, line) = yard.log(run)
    assert level == "error"
    assert "there is no connection 'ALERTS'" in line
    assert re.search(r"cloudcode\.ts:\d+:\d+", line)


# anomaly.rs


def usual(yard: Yard, key: str = "vibration") -> None:
    """Store eight values around 1, before anything runs on them."""
    for second, value in enumerate([1, 1.25, 0.75, 1, 1.25, 0.75, 1, 1]):
        yard.store(key, value, at=f"2026-03-01T00:00:0{second}.000Z")


async def test_anomaly_asks_a_service_how_far_is_too_far(yard: Yard) -> None:
    """A z-score over the fetched threshold is written at its reading's time; one below is not."""
    usual(yard)

    async def says(asked: Received) -> bytes:
        return answer(body=b' { "unit" : "\\u03c3\\ud83d\\ude00", "z" : 3.5e0 } ')

    async with http_server(says) as server:
        variables = {"THRESHOLD_URL": f"{server.url}/vibration"}
        fields = {"variables": variables, "allowed_hosts": ["127.0.0.1"], "keys": ["vibration"]}
        await asyncio.to_thread(yard.deploy, "anomaly", anomaly(), **fields)
        at = "2026-03-01T00:01:00.000Z"
        near = await asyncio.to_thread(yard.write, "vibration", 1.5, at=at)
        at = "2026-03-01T00:02:00.000Z"
        far = await asyncio.to_thread(yard.write, "vibration", 9, at=at)

    assert [near["status"], far["status"]] == ["succeeded", "succeeded"]
    assert yard.log(near) == []
    ((level, line),) = yard.log(far)
    assert level == "warn"
    assert re.fullmatch(r"vibration 9 is \d+\.\d standard deviations off, over 3\.5", line)
    (marked,) = yard.stored("vibration_z")
    assert marked["value"] > 20
    assert marked["datetime"] == at
    assert [asked.target for asked in server.received] == ["/vibration"] * 2
    assert server.received[0].headers["accept"] == "application/json"


@pytest.mark.parametrize("reuse", [False, True])
def test_anomaly_goes_on_without_its_service(yard: Yard, reuse: bool) -> None:
    """A host that it may not reach is a line in the log, and three deviations are too far."""
    usual(yard)
    variables = {"THRESHOLD_URL": "http://127.0.0.1:8/"}
    yard.deploy("anomaly", anomaly(), keys=["vibration"], variables=variables, reuse=reuse)

    runs = [yard.write("vibration", value) for value in (9, 1)]

    first, second = yard.log(runs[0])
    assert first[0] == second[0] == "warn"
    assert first[1].startswith("the threshold is 3: fetch: ")
    assert "allowed_hosts" in first[1]
    assert [run["status"] for run in runs] == ["succeeded", "succeeded"]
    assert len(yard.values("vibration_z")) == 1


def test_anomaly_needs_a_history(yard: Yard) -> None:
    """Of fewer than eight values nobody can say what is usual, nor of values that never moved."""
    function = yard.deploy("anomaly", anomaly(), keys=["vibration"])

    runs = [yard.write("vibration", 1) for _ in range(9)] + [yard.write("vibration", 99)]

    assert [yard.log(run) for run in runs] == [[]] * 10
    assert yard.values("vibration_z") == []
    assert yard.ask(function, {}) == {"anomalies": 0}


def test_anomaly_says_what_it_could_not_read(yard: Yard) -> None:
    """An `Err` of Rust is the last line of the log, and the run has failed."""
    function = yard.deploy("anomaly", anomaly())
    values = {"values": [{"key": "vibration", "value": 1, "datetime": "noon"}]}

    found = yard.engine.invoke(function, {"deviceId": yard.device["id"], "data": values})

    assert found.status_code == 502
    ((level, line),) = yard.log(yard.newest(function))
    assert level == "error"
    assert "'noon' is not a time" in line


# All of them.


def test_make_builds_every_example(tmp_path: Path) -> None:
    """`make -C examples/wasm` makes each of the modules that the README deploys."""
    for build in (rolling_mean, debounce, anomaly):
        build()  # skips this test where a compiler is missing
    folder = tmp_path / "examples" / "wasm"
    shutil.copytree(EXAMPLES, folder, ignore=shutil.ignore_patterns("build"))
    environment = f"ENVIRONMENT={EXAMPLES.parents[1] / '.venv'}"

    subprocess.run(["make", "-s", "-C", str(folder), environment], check=True, timeout=120)

    readme = (EXAMPLES / "README.md").read_text()
    deployed = set(re.findall(r"cloudcode deploy (\w+\.wasm)", readme))
    made = {file.name: file.read_bytes()[:4] for file in (folder / "build").iterdir()}
    assert made == dict.fromkeys(deployed, b"\0asm")
    assert len(made) == 5


@pytest.mark.parametrize(
    ("build", "kind"),
    [
        (threshold, "core"),
        (rolling_mean, "core"),
        (report, "command"),
        (debounce, "core"),
        (anomaly, "core"),
    ],
)
def test_each_example_is_of_the_kind_that_the_readme_says(
    yard: Yard, build: Callable[[], bytes], kind: str
) -> None:
    """And no larger than a function should be."""
    module = build()
    function = yard.deploy(build.__name__.replace("_", "-"), module)

    shown = yard.engine.ok("GET", f"/v1/functions/{function}")["wasm"]

    assert (shown["kind"], shown["bytes"]) == (kind, len(module))
    assert len(module) < 200_000
    row = rf"\[`\w+/{build.__name__}\.\w+`\]\([^)]*\) \| {kind} \|"
    assert re.search(row, (EXAMPLES / "README.md").read_text())


def test_the_readme_has_every_host_call(yard: Yard) -> None:
    """As the engine names them to someone who asks for another."""
    function = yard.deploy("echo", wat_module(ECHO))
    readme = (EXAMPLES / "README.md").read_text()
    section = readme.split("## Host calls")[1].split("##")[0]

    refused = yard.ask(function, {"operation": "no.such", "arguments": {}})

    named = refused["error"]["message"].split("there are: ")[1].split(", ")
    assert not refused["ok"]
    assert set(re.findall(r"^\| `([\w.]+)`", section, re.MULTILINE)) == {*named, "env", "context"}


def test_env_and_context_are_as_the_readme_says(yard: Yard) -> None:
    """Texts by name; who runs, for what, until when."""
    function = yard.deploy("echo", wat_module(ECHO), variables={"A": 'ü"'})
    readme = (EXAMPLES / "README.md").read_text()
    row = re.search(r"^\| `context` \|.*\| `\{(.*)\}` \|$", readme, re.MULTILINE)

    env = yard.ask(function, {"operation": "env", "arguments": {}})
    context = yard.ask(function, {"operation": "context", "arguments": {}})

    assert env == {"ok": True, "value": {"A": 'ü"'}}
    assert row is not None
    assert list(context["value"]) == row[1].split(", ")
    assert context["value"]["executionId"] == yard.newest(function)["id"]
    assert (context["value"]["handler"], context["value"]["functionVersion"]) == ("default", 1)
