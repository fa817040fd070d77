"""One contract for every runtime: the same steps, the same world, the same ends.

Each test runs once for each kind of guest in `guests.kinds`; what a kind has nothing of stands
there, with the reason. Names begin with `rt-`.
"""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import asyncio
import itertools
import json
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import httpx
import msgspec
import pytest

from engine.builder import Builder
from engine.bundles import check_options
from engine.programs import Recipe
from runtimes.contract import CellKind, Runtime, ToCell, packed
from sandbox.supervisor import Sandbox
from tests.contracts.guests.kinds import KINDS, REACTOR, Kind, module
from tests.standins.cell_listener import Listener, sandbox  # noqa: F401 - a fixture
from tests.standins.http_server import Received, answer, http_server
from tests.standins.providers import twilio

CALM = {"cpu_ms": 2_000, "wall_ms": 20_000}  # two cores are shared with whatever else runs
LIMITS = {
    "calm": CALM,
    "small": {"cpu_ms": 200, "memory_mb": 16},
    "short": {"wall_ms": 300},
    "metered": CALM | {"fuel": 100_000_000},
    "versions": CALM,  # these three are changed by the test that has them
    "variables": CALM,
    "deleted": CALM,
}
EVENT_FIELDS = {
    "id", "type", "source", "time", "receivedAt", "deviceId", "deviceType", "data", "metadata",
}  # fmt: skip
AT_ONCE = 64
TO = "+15005550010"
_numbers = itertools.count()


class Guest:
    """One kind of guest on the engine: deployed with each set of limits when it is first asked."""

    def __init__(self, engine: Any, kind: Kind, sms: twilio.StandIn) -> None:
        self.engine = engine
        self.kind = kind
        self.sms = sms
        self._deployed: set[str] = set()

    def function(self, limits: str = "calm", **fields: Any) -> str:
        """Return the name of the function with these limits."""
        name = f"rt-{self.kind.name}-{limits}"
        if name not in self._deployed:
            self.engine.ok("POST", "/v1/functions", self.fields(limits) | {"name": name} | fields)
            self._deployed.add(name)
        return name

    def fields(self, limits: str = "calm") -> dict[str, Any]:
        return {
            **self.kind.fields(),
            "limits": LIMITS[limits],
            "allowed_hosts": ["127.0.0.1"],
            "variables": {"RT_PLAIN": "dreißig", "RT_EMPTY": ""},
            "secrets": ["RT_SECRET"],
        }

    def invoke(
        self, step: Any, limits: str = "calm", path: str = "invoke", **headers: str
    ) -> httpx.Response:
        name = self.function(limits)
        sent = {header.replace("_", "-"): text for header, text in headers.items()}
        return self.engine.client.post(f"/v1/functions/{name}/{path}", json=step, headers=sent)

    def ask(self, step: Any, limits: str = "calm") -> Any:
        """Run the step and return its result."""
        found = self.invoke(step, limits)
        assert found.status_code == 200, found.text
        return found.json()

    def run(self, step: Any, limits: str = "calm") -> dict[str, Any]:
        """Run the step, however it ends, and return the execution."""
        return self.shown(self.invoke(step, limits).headers["execution-id"])

    def fail(self, step: Any, limits: str = "calm") -> dict[str, Any]:
        """Run the step, which does not succeed, and return the execution."""
        found = self.invoke(step, limits)
        assert found.status_code in {502, 504}, found.text
        return self.shown(found.json()["execution_id"])

    def shown(self, execution: str) -> dict[str, Any]:
        return self.engine.ok("GET", f"/v1/executions/{execution}")

    def ended(self, execution: str) -> dict[str, Any]:
        waits = {"queued", "running"}
        return self.engine.until(
            lambda: (found := self.shown(execution))["status"] not in waits and found
        )

    def log(self, execution: dict[str, Any]) -> list[tuple[str, str]]:
        lines = self.engine.ok("GET", f"/v1/executions/{execution['id']}/logs")["items"]
        return [(line["level"], line["msg"]) for line in lines]

    def device(self, product: str = "") -> dict[str, Any]:
        product = product or f"rt-{self.kind.name}"
        return self.engine.device(product, f"device-{next(_numbers)}")

    def values(self, device: dict[str, Any], key: str) -> list[Any]:
        """Return what is stored, oldest first."""
        query = {"key": key, "limit": 200}
        path = f"/v1/devices/{device['id']}/values"
        items = self.engine.ok("GET", path, params=query)["items"]
        return [item["value"] for item in reversed(items)]

    def triggered(self, device: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
        """Write a value as the device, and return the execution that this causes."""
        body = {"values": [{"key": key, "value": value}]}
        path = f"/v1/devices/{device['id']}/values"
        (execution,) = self.engine.ok("POST", path, body)["executions"]
        return self.ended(execution)

    def product_with_trigger(self) -> str:
        product = f"rt-{self.kind.name}-triggers"
        if product not in self._deployed:
            self.engine.ok("POST", "/v1/products", {"name": product})
            body = {"function": self.function(), "product": product, "keys": ["do", "in"]}
            self.engine.ok("POST", "/v1/triggers", body)
            self._deployed.add(product)
        return product


@pytest.fixture(scope="module")
def sms() -> Iterator[twilio.StandIn]:
    with twilio.StandIn() as running:
        yield running


@pytest.fixture(scope="module")
def guests(engine: Any, sms: twilio.StandIn) -> dict[str, Guest]:
    engine.ok("PUT", "/v1/secrets/RT_SECRET", {"value": "s3cret ü"})
    engine.ok("PUT", "/v1/connections/RT_SMS", sms.connection())
    return {kind.name: Guest(engine, kind, sms) for kind in KINDS}


@pytest.fixture
def guest(guests: dict[str, Guest], request: pytest.FixtureRequest) -> Guest:
    return guests[request.param]


@pytest.fixture
def device(guest: Guest) -> dict[str, Any]:
    return guest.device()


def on_every(*facts: str) -> pytest.MarkDecorator:
    """Run a test on every kind of guest but those that lack one of the facts: they say why."""
    kinds = []
    for kind in KINDS:
        reasons = [kind.lacks[fact] for fact in facts if fact in kind.lacks]
        marks = [pytest.mark.skip(reason=f"{kind.name}: {reasons[0]}")] if reasons else []
        kinds.append(pytest.param(kind.name, id=kind.name, marks=marks))
    return pytest.mark.parametrize("guest", kinds, indirect=True)


def echo(value: Any) -> dict[str, Any]:
    return {"do": "echo", "value": value}


def repeat(count: int, step: Any) -> dict[str, Any]:
    return {"do": "repeat", "count": count, "step": step}


def attempt(step: Any) -> dict[str, Any]:
    return {"do": "try", "step": step}


def timer(ms: int) -> dict[str, Any]:
    return {"do": "timer", "ms": ms}


def log(level: str, text: str) -> dict[str, Any]:
    return {"do": "log", "level": level, "text": text}


def write(device: dict[str, Any], key: str, *values: Any) -> dict[str, Any]:
    rows = [{"key": key, "value": value} for value in values]
    return {"do": "write", "device": device["id"], "values": rows}


def kv(operation: str, key: str | None = None, **more: Any) -> dict[str, Any]:
    named = {} if key is None else {"key": key}
    return {"do": "kv", "operation": operation, **named, **more}


# Values in and out.

VALUES = [
    None, True, False, 0, -1, 1.5, -0.001, 1e300, 5e-324, 2**53 - 1, 1 - 2**53,
    "", " ", 'a"b\\c/', "\n\t\r\b\f\x01", "\x00in\x00side", "äöüß", "日本語", "😀",
    "\u2028\u2029\ufeff", "\ufffd", [], {}, [[]], [{}], {"": ""}, {"a b": {"c": [1, None, "x"]}},
    {"0": 1, "ключ": "значение", "😀": [True]}, json.loads("[" * 150 + "]" * 150),
]  # fmt: skip


@on_every()
def test_values_come_back_as_they_went_in(guest: Guest) -> None:
    """Every kind of JSON value, of every plane of Unicode, empty, and deep."""
    result = guest.ask([echo(value) for value in VALUES])

    assert result == VALUES


@on_every("big numbers")
def test_numbers_come_back_with_every_digit(guest: Guest) -> None:
    """A module gets the text that was sent, and its result is taken as it is."""
    values = [2**53 + 1, 2**64 - 1, -(2**63), 10**25, 0.1234567890123456]

    assert guest.ask([echo(value) for value in values]) == values


@on_every()
def test_a_large_value_comes_back(guest: Guest) -> None:
    """900 KB, in and out."""
    value = 'äx😀"' * 100_000

    result = guest.ask(echo(value[:400_000]))

    assert result == value[:400_000]


@on_every()
def test_null_goes_in_and_out(guest: Guest) -> None:
    """No parameters are null; a guest that gives nothing back gives null."""
    assert guest.ask(None) is None
    assert guest.ask({"do": "nothing"}) is None


@on_every()
def test_parameters_may_be_of_any_type(guest: Guest) -> None:
    """Not only objects."""
    for params in (5, "text", True, {}, {"a": 1}):
        assert guest.ask(params) == params


@on_every()
def test_an_error_is_told(guest: Guest) -> None:
    """Its message arrives at whoever called, and in the record; the next run is none the worse."""
    step = {"do": "fail", "message": "no water in tank 7: ü"}

    found = guest.invoke([echo(1), step])
    after = guest.ask(echo(2))

    problem = found.json()
    record = guest.shown(problem["execution_id"])
    assert (found.status_code, problem["code"]) == (502, "function_error")
    assert problem["error"]["name"] == guest.kind.error
    assert problem["error"]["message"].endswith("no water in tank 7: ü")
    assert (record["status"], record["limit"], record["result"]) == ("failed", None, None)
    assert record["error"]["message"] == problem["error"]["message"]
    assert after == 2


TRAPS = {"divide": "integer divide by zero", "stray": "out of bounds memory access"}


@pytest.mark.parametrize("step", TRAPS)
@on_every("traps")
def test_a_trap_is_told(guest: Guest, step: str) -> None:
    """By its reason, and the functions that led there."""
    error = guest.fail([echo(1), {"do": step}])["error"]

    assert (error["name"], error["message"]) == ("Trap", TRAPS[step])
    assert f"at {step} (" in error["stack"]
    assert "at perform" in error["stack"]


@on_every()
def test_memory_is_kept_as_the_kind_says(guest: Guest) -> None:
    """A script and a reused instance keep their variables; other instances begin anew."""
    first, second, third = [guest.ask({"do": "count"}) for _ in range(3)]

    steps = (second - first, third - second)
    assert steps == ((1, 1) if guest.kind.keeps_memory else (0, 0))
    assert guest.kind.keeps_memory or first == 1


@pytest.mark.slow
@on_every("traps")
def test_an_instance_that_failed_is_thrown_away(guest: Guest) -> None:
    """However it failed: no run finds what another one left half done."""
    endings = [{"do": "fail", "message": "x"}, {"do": "divide"}, {"do": "spin"}, {"do": "allocate"}]

    counts = []
    for ending in endings:
        guest.fail(ending, "small")
        counts.append(guest.ask({"do": "count"}, "small"))

    assert counts == [1, 1, 1, 1]


# The log.


@on_every()
def test_lines_have_levels_and_an_order(guest: Guest) -> None:
    """As they were said, around host calls too."""
    said = [("debug", "a"), ("info", "ü 😀"), ("warn", "two\nlines"), ("error", ""), ("info", "e")]
    steps = [log(*said[0]), log(*said[1]), timer(1), log(*said[2]), log(*said[3]), log(*said[4])]

    run = guest.run(steps)

    assert guest.log(run) == said


@on_every()
def test_a_flood_of_lines_is_cut_and_says_so(guest: Guest) -> None:
    """256 lines, and one that tells how many are missing."""
    run = guest.run([{"do": "log_flood", "count": 300}, echo("on")])

    lines = guest.log(run)
    assert run["result"][1] == "on"
    assert lines[:256] == [("info", f"line {n}") for n in range(256)]
    assert len(lines) == 257
    assert "44 more lines" in lines[256][1]


@on_every()
def test_a_long_line_is_cut_and_says_so(guest: Guest) -> None:
    """At 64 KiB of log; what comes after it is dropped."""
    run = guest.run([log("info", "first"), {"do": "log_long", "length": 70_000}, log("warn", "x")])

    (_, first), (_, long), (_, last) = guest.log(run)
    assert first == "first"
    assert long.endswith("… [line cut: log limit]")
    assert 65_000 < long.count("x") < 65_536
    assert "1 more line" in last


@pytest.mark.slow
@on_every()
def test_the_log_before_a_stop_is_kept(guest: Guest) -> None:
    """What a run said before it was stopped can be read: from both sides of a host call."""
    steps = [log("info", "early"), timer(1), log("warn", "last words"), {"do": "spin"}]

    run = guest.fail(steps, "small")

    assert run["status"] == "cpu_exceeded"
    assert guest.log(run) == [("info", "early"), ("warn", "last words")]


@on_every("WASI")
def test_stderr_is_the_log(guest: Guest) -> None:
    """Line by line, at level info, between the lines of engine.log."""
    steps = [{"do": "say", "text": "one ü"}, log("warn", "two"), {"do": "say", "text": "three\n4"}]

    run = guest.run(steps)

    assert guest.log(run) == [("info", "one ü"), ("warn", "two"), ("info", "three"), ("info", "4")]


# Time and chance.


@on_every()
def test_time_stands_still_while_code_runs(guest: Guest) -> None:
    """It moves by answers alone: after a timer of 50 ms it is 50 ms later, and not much more."""
    now, work = {"do": "clock"}, {"do": "work", "loops": 3_000_000}

    before, _, after, _, later = guest.ask([now, work, now, timer(50), now])

    assert before == after
    assert 49 <= later - before < 1_000


@on_every()
def test_the_clock_is_recorded(guest: Guest) -> None:
    """The execution says at what time the run began."""
    run = guest.run({"do": "clock"})

    began = datetime.fromtimestamp(run["result"] / 1000, UTC)
    assert run["clock"] == began.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@on_every()
def test_chance_differs_between_runs(guest: Guest) -> None:
    """All bits of it; the seed is in the record."""
    runs = [guest.run({"do": "chance", "count": 50}) for _ in range(2)]

    numbers = [number for run in runs for number in run["result"]]
    assert len(set(numbers)) > 95
    assert all(0 <= number < 2**32 for number in numbers)
    assert any(number >= 2**31 for number in numbers)
    assert runs[0]["seed"] != runs[1]["seed"]


# What a run knows.


@on_every("env")
def test_variables_and_secrets_are_in_env(guest: Guest) -> None:
    """And nothing that was not asked for. Its name stands where the secret's own value would."""
    names = ["RT_PLAIN", "RT_EMPTY", "RT_SECRET", "PATH"]

    assert guest.ask({"do": "env", "names": names}) == ["dreißig", "", "[secret RT_SECRET]", None]


@on_every("WASI")
def test_the_environment_has_no_secrets(guest: Guest) -> None:
    """Variables are in it; programs print their environment when they fail."""
    names = ["RT_PLAIN", "RT_EMPTY", "RT_SECRET", "PATH"]

    assert guest.ask({"do": "getenv", "names": names}) == ["dreißig", "", None, None]


@on_every("WASI")
def test_the_first_argument_is_the_name(guest: Guest) -> None:
    """As everywhere."""
    assert guest.ask({"do": "arguments"}) == [guest.function()]


@on_every("ctx")
def test_the_context_tells_about_the_run(guest: Guest) -> None:
    """Its id, version, attempt, root, depth, handler and deadline."""
    run = guest.run([{"do": "context"}, {"do": "clock"}])

    context, now = run["result"]
    assert context["executionId"] == context["rootId"] == run["id"]
    assert (context["functionVersion"], context["attempt"], context["depth"]) == (1, 1, 0)
    assert context["handler"] == run["handler"] == "default"
    assert context["deadline"] - now == LIMITS["calm"]["wall_ms"]


# Host calls.


@on_every()
def test_a_run_reads_its_own_writes(guest: Guest, device: dict[str, Any]) -> None:
    """Newest first, before anything is stored; then it is."""
    read = {"do": "read", "device": device["id"], "key": "n", "limit": 5}

    none, _, _, both = guest.ask(
        [read, write(device, "n", "ü"), write(device, "n", {"a": 2}), read]
    )

    assert none == []
    assert both == [{"a": 2}, "ü"]
    assert guest.values(device, "n") == ["ü", {"a": 2}]


@on_every()
def test_a_run_lists_the_devices_of_its_product(guest: Guest) -> None:
    """Of the product whose device started it."""
    product = guest.product_with_trigger()
    other, device = guest.device(product), guest.device(product)

    run = guest.triggered(device, "do", {"do": "list"})

    assert {other["name"], device["name"]} <= set(run["result"])


def send(body: str, **fields: Any) -> dict[str, Any]:
    return {"do": "send", "connection": "RT_SMS", "message": {"to": TO, "body": body} | fields}


@on_every()
def test_a_message_is_sent_once_it_succeeded(guest: Guest) -> None:
    """And never, if it did not."""
    said, unsaid = (f"rt {guest.kind.name} {word}" for word in ("said", "unsaid"))

    guest.fail([send(unsaid), {"do": "fail", "message": "x"}])
    run = guest.run(send(said))

    (effect,) = run["effects"]
    guest.engine.until(lambda: said in [message["Body"] for message in guest.sms.accepted])
    texts = [message["Body"] for message in guest.sms.accepted]
    assert (effect["kind"], effect["connection"]) == ("delivery", "RT_SMS")
    assert effect["id"] == run["result"]
    assert (texts.count(said), texts.count(unsaid)) == (1, 0)


@on_every()
def test_a_message_that_the_provider_would_refuse_is_refused_at_once(guest: Guest) -> None:
    """The error names the field, or the connection; the run can go on, and sends nothing."""
    no_body = attempt(send("", to="0170 1234567"))
    no_connection = attempt(send("x") | {"connection": "RT_NONE"})

    run = guest.run([no_body, no_connection])

    first, second = (step["error"] for step in run["result"])
    assert "to" in first["message"]
    assert "RT_NONE" in second["message"] or "undefined" in second["message"]
    assert run["effects"] == []


@on_every("any host call")
def test_credentials_that_a_module_brings_are_not_seen_again(guest: Guest) -> None:
    """Not in the record of what it asked, nor in its log, which warns of them."""
    ses = {"access_key_id": "AKIAIOSFODNN7EXAMPLE", "region": "eu-nowhere-1"}  # no such region
    ses["secret_access_key"] = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"
    message = {"from": "a@example.com", "to": "b@example.com", "subject": "s", "text": "t"}
    asked = {"kind": "mail", "credentials": {"ses": ses}, "message": message}
    step = {"do": "call", "operation": "connection.send", "arguments": asked}

    run = guest.run([step, step])

    ((level, text),) = guest.log(run)
    names = {effect["connection"] for effect in run["effects"]}
    assert (run["status"], len(run["effects"]), len(names)) == ("succeeded", 2, 1)
    assert names.pop().startswith("inline:mail:")
    assert [call[1]["credentials"] for call in run["transcript"]] == ["[not shown]"] * 2
    assert (level, "PUT /v1/connections/EMAIL" in text) == ("warn", True)
    assert ses["secret_access_key"] not in json.dumps(run | {"input": None})


async def _mirror(received: Received) -> bytes:
    shown = f"{received.method} {received.target} ".encode() + received.body
    return answer(418 if "teapot" in received.target else 200, shown, X_Mine="yes")


@pytest.fixture(scope="module")
def mirror() -> Iterator[str]:
    """An HTTP server in a thread; its URL."""
    ready: Future[str] = Future()
    stop = asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with http_server(_mirror) as server:
            ready.set_result(server.url)
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    yield ready.result(timeout=10)
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


@on_every()
def test_fetch_gives_what_the_server_said(guest: Guest, mirror: str) -> None:
    """Status, headers, body; an error status is no error."""
    put = {"do": "fetch", "url": f"{mirror}/a?b=1", "method": "PUT", "body": {"ü": 1}}

    first, second = guest.ask([put, {"do": "fetch", "url": f"{mirror}/teapot"}])

    head, _, sent = first["body"].partition("?b=1 ")
    assert (first["status"], first["mine"], head, json.loads(sent)) == (
        200,
        "yes",
        "PUT /a",
        {"ü": 1},
    )
    assert (second["status"], second["body"]) == (418, "GET /teapot ")


@on_every("ctx")
def test_a_job_says_how_far_it_is(guest: Guest) -> None:
    """At once, for whoever asks; a wrong word is an error that the guest can catch."""
    step = {"do": "progress", "value": 0.5, "message": "half ü"}
    payload = [step, attempt(step | {"value": 2}), timer(200)]
    body = {"function": guest.function(), "payload": payload}

    made = guest.engine.ok("POST", "/v1/jobs", body)
    job = guest.engine.ok("GET", f"/v1/jobs/{made['id']}?wait=20")

    assert (job["status"], job["handler"]) == ("succeeded", "job"), job
    assert (job["progress"]["value"], job["progress"]["message"]) == (0.5, "half ü")
    assert job["result"][0] is None
    assert "progress must be 0 to 1, not 2" in json.dumps(job["result"][1])


@on_every("kv")
def test_a_run_reads_its_own_keys(guest: Guest) -> None:
    """What it has put and deleted so far; then it is stored, and the next run finds it."""
    one, two = kv("get", "one ü"), kv("get", "two")
    here = f"rt-{guest.kind.name}"

    def in_here(*steps: dict[str, Any]) -> list[dict[str, Any]]:
        return [step | {"namespace": here} for step in steps]

    steps = in_here(
        one, kv("put", "one ü", value={"ü": [1, None]}, ttl_seconds=60), one,
        kv("put", "two", value=1), kv("delete", "two"), two, kv("put", "two", value=2), two,
    )  # fmt: skip
    run = guest.run(steps)
    after = guest.ask(in_here(one, two, kv("delete", "one ü"), one, kv("list")))
    last = guest.ask(in_here(one, two))

    shown = [(effect["kind"], effect["key"], effect["operation"]) for effect in run["effects"]]
    both = {"ü": [1, None]}
    assert run["result"] == [None, None, both, None, None, None, None, 2]
    assert shown == [
        ("kv", "one ü", "put"), ("kv", "two", "put"), ("kv", "two", "delete"), ("kv", "two", "put"),
    ]  # fmt: skip
    assert after == [both, 2, None, None, {"keys": [{"key": "two"}], "next_cursor": None}]
    assert last == [None, 2]


@on_every("kv")
def test_keys_are_listed_by_prefix(guest: Guest) -> None:
    """Page by page, in order; in another namespace there are others."""
    here = {"namespace": f"rt-{guest.kind.name}-list"}
    puts = [kv("put", key, value=1) | here for key in ("b2", "a", "b3", "b1", "c")]
    guest.ask([*puts, kv("put", "b", value=1, namespace="rt-elsewhere")])

    everything, two = guest.ask([kv("list") | here, kv("list", prefix="b", limit=2) | here])
    rest = guest.ask(kv("list", prefix="b", cursor=two["next_cursor"]) | here)

    pages = [[one["key"] for one in page["keys"]] for page in (everything, two, rest)]
    assert pages == [["a", "b1", "b2", "b3", "c"], ["b1", "b2"], ["b3"]]
    assert everything["next_cursor"] is rest["next_cursor"] is None


@on_every("kv")
def test_a_run_that_fails_keeps_no_key(guest: Guest) -> None:
    """What it deleted is still there, what it put is not; a wrong call it may catch."""
    here = {"namespace": f"rt-{guest.kind.name}-fails"}
    guest.ask(kv("put", "old", value="there") | here)
    wrong = [kv("get", ""), kv("put", "k", value="x" * 65_535), kv("list", limit=0), kv("put", "k")]
    changes = [kv("delete", "old") | here, kv("put", "new", value=1) | here]

    run = guest.fail([*changes, {"do": "fail", "message": "x"}])
    *refused, old, new = guest.ask(
        [*map(attempt, wrong), kv("get", "old") | here, kv("get", "new") | here]
    )

    codes = [one["error"]["code"] for one in refused]
    assert run["effects"] == []
    assert (old, new) == ("there", None)
    assert codes == [
        "validation_failed", "payload_too_large", "validation_failed", "invalid_arguments",
    ]  # fmt: skip


@on_every()
def test_a_refused_call_is_an_error_that_can_be_read(guest: Guest, device: dict[str, Any]) -> None:
    """It says what was wrong, with a code; the run goes on."""
    steps = [
        {"do": "read", "device": "dev_nobody", "key": "k"},
        {"do": "write", "device": "dev_nobody", "values": [{"key": "k", "value": 1}]},
        {"do": "write", "device": device["id"], "values": [{"key": "a b", "value": 1}]},
        {"do": "fetch", "url": "http://elsewhere.example/"},
        {"do": "list"},
    ]

    *said, on = guest.ask([*map(attempt, steps), echo("on")])

    errors = [one["error"] for one in said]
    codes = ["not_found", "not_found", "validation_failed", "egress_refused", "host_call_refused"]
    assert on == "on"
    assert [error["code"] for error in errors] == codes
    assert "dev_nobody" in errors[0]["message"]
    assert "a b" in errors[2]["message"]
    assert "elsewhere.example" in errors[3]["message"]


@on_every("any host call")
def test_an_unknown_host_call_is_an_error(guest: Guest) -> None:
    """So are arguments of the wrong shape; the names that there are are told."""
    calls = [
        ("devices.burn", {}),
        ("", {}),
        ("timer", {"ms": "soon"}),
        ("devices.values", {"a": 1}),
    ]
    steps = [{"do": "call", "operation": name, "arguments": given} for name, given in calls]

    *said, on = guest.ask([*map(attempt, steps), echo("on")])

    errors = [one["error"] for one in said]
    assert on == "on"
    assert [error["code"] for error in errors] == ["not_found"] * 2 + ["invalid_arguments"] * 2
    assert "devices.write" in errors[0]["message"]


@on_every("WASI")
def test_a_program_may_sleep(guest: Guest) -> None:
    """As C programs do: it is the timer, by another name."""
    run = guest.run([{"do": "clock"}, {"do": "nap", "ms": 30}, {"do": "clock"}])

    before, _, after = run["result"]
    assert 29 <= after - before < 1_000
    assert [call[:2] for call in run["transcript"]] == [["timer", {"ms": 30}]]


# Effects.


@on_every()
def test_a_run_that_succeeds_leaves_its_effects(guest: Guest, device: dict[str, Any]) -> None:
    """Stored once, as an event whose source is a function; the record tells where."""
    run = guest.run([write(device, "fx", 1, 2), timer(1), write(device, "fx", 3)])

    first, second = run["effects"]
    assert guest.values(device, "fx") == [1, 2, 3]
    assert (first["kind"], first["device"], first["values"]) == ("write", device["id"], 2)
    assert (second["kind"], second["device"], second["values"]) == ("write", device["id"], 1)
    stored = [(effect["event_id"], "function") for effect in (first, second)]
    assert events_of(guest, device) == stored


def events_of(guest: Guest, device: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (id, source) of what is stored of a device, oldest first."""
    with closing(sqlite3.connect(guest.engine.data_dir / "engine.db", timeout=30)) as database:
        query = "SELECT id, source FROM events WHERE device_id = ? ORDER BY id"
        return database.execute(query, (device["id"],)).fetchall()


# Limits.

PIECES = repeat(900, [{"do": "work", "loops": 2_000_000}, timer(1)])
ENDS = {
    "cpu": ("small", {"do": "spin"}, "cpu_exceeded", "cpu_ms", 200),
    "cpu in pieces": ("small", PIECES, "cpu_exceeded", "cpu_ms", 200),
    "wall": ("short", timer(60_000), "timed_out", "wall_ms", 300),
    "memory": ("small", {"do": "allocate"}, "memory_exceeded", "memory_mb", 16),
}
HERE = {"id": "$"}  # becomes the test's device
_SEND = send("never")
_FETCH = attempt({"do": "fetch", "url": "http://elsewhere.example/"})
EXCESSES = {
    "output": ({"do": "text", "length": 2**20}, "output_exceeded", "output_bytes", 2**20),
    "writes": (write(HERE, "k", *range(257)), "effects_exceeded", "device_writes", 256),
    "bytes": (
        repeat(17, write(HERE, "k", "x" * 250_000)), "effects_exceeded", "effect_bytes", 2**22,
    ),
    "deliveries": (repeat(21, _SEND), "effects_exceeded", "deliveries", 20),
    "host calls": (
        repeat(1_001, attempt(write(HERE, "a b", 1))), "host_calls_exceeded", "host_calls", 1_000,
    ),
    "keys": (repeat(101, kv("put", "k", value=1)), "host_calls_exceeded", "kv_operations", 100),
    "requests": (repeat(51, _FETCH), "host_calls_exceeded", "network_requests", 50),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
@on_every()
def test_a_stopped_run_harms_nobody(guest: Guest, device: dict[str, Any], end: str) -> None:
    """It ends by the limit's name and number, and leaves nothing; who runs beside it goes on.

    That is another function, and where its limits leave time for it the same one.
    """
    limits, step, status, name, most = ENDS[end]
    beside = [repeat(6, timer(20)), log("info", "beside"), write(device, "beside", 1), echo("done")]
    guest.ask(None, limits)

    with ThreadPoolExecutor(2) as threads:
        places = ("calm", "small" if limits == "small" else "calm")
        neighbours = [threads.submit(guest.run, beside, place) for place in places]
        run = guest.fail([write(device, "stopped", 1), timer(1), step], limits)
    after = guest.ask(echo("after"), limits)

    assert run["status"] == status, run
    assert (run["limit"]["name"], run["limit"]["value"]) == (name, most)
    assert run["limit"]["used"] >= most
    assert run["effects"] == guest.values(device, "stopped") == []
    for ended in (neighbour.result() for neighbour in neighbours):
        assert (ended["status"], ended["result"]) == ("succeeded", [None, None, None, "done"])
        assert guest.log(ended) == [("info", "beside")]
        assert ended["attempt"] == 1 or not guest.kind.wasm  # a module's cell survives
    assert guest.values(device, "beside") == [1, 1]
    assert after == "after"


@pytest.mark.slow
@pytest.mark.parametrize("excess", EXCESSES)
@on_every()
def test_too_much_ends_a_run(guest: Guest, device: dict[str, Any], excess: str) -> None:
    """By the limit's name and number; nothing that it wrote is stored."""
    step, status, name, most = EXCESSES[excess]
    if excess == "keys" and "kv" in guest.kind.lacks:
        pytest.skip(f"{guest.kind.name}: {guest.kind.lacks['kv']}")
    for_device = json.loads(json.dumps(step).replace('"$"', json.dumps(device["id"])))

    run = guest.fail([write(device, "before", 1), for_device])

    assert run["status"] == status, run
    assert (run["limit"]["name"], run["limit"]["value"]) == (name, most)
    assert run["limit"]["used"] > most
    assert run["effects"] == events_of(guest, device) == []


@pytest.mark.slow
@on_every()
def test_as_much_as_the_limits_allow(guest: Guest, device: dict[str, Any]) -> None:
    """What is exactly at a limit is not over it."""
    calls = repeat(998, attempt(write(device, "a b", 1)))  # with the two others 1,000

    run = guest.run([write(device, "k", *range(256)), calls, timer(1)])
    full = guest.ask({"do": "text", "length": 2**20 - 2})

    assert run["status"] == "succeeded"
    assert guest.values(device, "k") == [*range(56, 256)]  # the newest page
    assert len(full) == 2**20 - 2


# Many at once.


@pytest.mark.slow
@on_every()
def test_interleaved_runs_never_mix(guest: Guest, device: dict[str, Any]) -> None:
    """Of 64 runs at once each has its own parameters, log, chance, effects and result."""
    guest.ask(None)

    def run(n: int) -> httpx.Response:
        steps = [
            log("info", f"run {n}"), timer(20 + n * 7 % 30), {"do": "chance", "count": 3},
            write(device, "mix", f"value {n}"), log("warn", f"end {n}"), echo({"n": n}),
        ]  # fmt: skip
        return guest.invoke(steps)

    with ThreadPoolExecutor(AT_ONCE) as threads:
        answers = list(threads.map(run, range(AT_ONCE)))

    results = [found.json() for found in answers]
    assert [result[5] for result in results] == [{"n": n} for n in range(AT_ONCE)]
    assert len({number for result in results for number in result[2]}) == 3 * AT_ONCE
    assert sorted(guest.values(device, "mix")) == sorted(f"value {n}" for n in range(AT_ONCE))
    for n, found in enumerate(answers):
        lines = guest.log({"id": found.headers["execution-id"]})
        assert lines == [("info", f"run {n}"), ("warn", f"end {n}")]


# How runs are started.


@on_every("events")
def test_a_write_triggers_it(guest: Guest) -> None:
    """It gets the event: CloudEvents' names, and the values as they were sent."""
    device = guest.device(guest.product_with_trigger())

    run = guest.triggered(device, "in", {"a": "😀"})

    event = run["result"]
    assert set(event) == EVENT_FIELDS
    assert (event["id"], event["deviceId"]) == (run["event_id"], device["id"])
    assert (event["type"], event["source"]) == ("device.write", "http")
    ((key, value),) = [(one["key"], one["value"]) for one in event["data"]["values"]]
    assert (key, value) == ("in", {"a": "😀"})
    assert (run["handler"], run["cause"], run["device_id"]) == ("afterStore", "write", device["id"])


@on_every("ctx")
def test_a_trigger_knows_its_handler(guest: Guest) -> None:
    """And what started it."""
    device = guest.device(guest.product_with_trigger())

    run = guest.triggered(device, "do", {"do": "context"})

    context = run["result"]
    assert (context["handler"], context["executionId"]) == ("afterStore", run["id"])


@on_every()
def test_what_a_trigger_writes_is_stored(guest: Guest) -> None:
    """On the device that started it, once."""
    device = guest.device(guest.product_with_trigger())

    run = guest.triggered(device, "do", write(device, "echoed", {"ü": 1}))

    assert run["status"] == "succeeded"
    assert guest.values(device, "echoed") == [{"ü": 1}]
    assert [source for _, source in events_of(guest, device)] == ["http", "function"]


@on_every()
def test_a_result_may_be_fetched_later(guest: Guest) -> None:
    """202 at once, with the place where it will be."""
    found = guest.invoke([timer(50), echo("later")], Prefer="respond-async")

    run = guest.ended(found.json()["execution_id"])
    assert found.status_code == 202
    assert found.headers["location"] == f"/v1/executions/{run['id']}"
    assert (run["status"], run["result"]) == ("succeeded", [None, "later"])


@on_every()
def test_a_job_runs_by_its_name(guest: Guest) -> None:
    """With the limits of a job; a handler that is not there is refused by name."""
    found = guest.invoke(echo("job"), path="invoke?handler=job")
    other = guest.invoke(echo("x"), path="invoke?handler=queue")

    run = guest.shown(found.headers["execution-id"])
    assert (run["handler"], run["result"]) == ("job", "job")
    assert other.status_code == 422
    assert "job" in other.json()["detail"]


BODIES = {"text": "grüße\n".encode(), "bytes": bytes(range(256)), "none": b""}


@pytest.mark.parametrize("body", BODIES)
@on_every("fetch handler")
def test_http_requests_are_answered(guest: Guest, body: str) -> None:
    """Method, query, headers and body arrive; so do status, headers and body."""
    sent = BODIES[body]
    url = f"{guest.engine.url}/f/default/{guest.function()}/x?y=1&z=%C3%BC"

    found = httpx.request("PUT", url, content=sent, headers={"Content-Type": "x/y"})

    assert (found.status_code, found.content) == (201, sent)
    assert found.headers["x-method"] == "PUT"
    assert found.headers["x-url"] == url
    assert found.headers["content-type"] == "x/y"


@on_every("fetch handler")
def test_http_methods_arrive(guest: Guest) -> None:
    """GET without a body; HEAD is a GET whose answer has no body."""
    url = f"{guest.engine.url}/f/default/{guest.function()}"

    got, headed = httpx.get(url), httpx.head(url)

    assert (got.status_code, got.content, got.headers["x-method"]) == (201, b"", "GET")
    assert (headed.status_code, headed.content) == (201, b"")


@on_every("any answer")
def test_any_result_is_an_answer(guest: Guest) -> None:
    """What is no response with a status is sent as the JSON that it is."""
    url = f"{guest.engine.url}/f/default/{guest.function()}/any"

    found = httpx.patch(url, json={"a": "ü"})

    request = found.json()
    assert (found.status_code, found.headers["content-type"]) == (200, "application/json")
    assert (request["method"], request["url"]) == ("PATCH", url)
    assert json.loads(request["body"]) == {"a": "ü"}


# Versions.


@pytest.mark.slow
@on_every()
def test_versions_are_deployed_and_rolled_back(guest: Guest) -> None:
    """A new version is live at once, a rollback brings the old one back, two may share the runs."""
    name = guest.function("versions")
    path = f"/v1/functions/{name}"

    def live() -> set[int]:
        return {guest.run(echo(n), "versions")["version"] for n in range(2)}

    seen = [live()]
    guest.engine.ok("POST", f"{path}/versions?deploy=true", guest.fields("versions"))
    seen.append(live())
    guest.engine.ok("POST", f"{path}/rollback")
    seen.append(live())
    halves = [{"version": 1, "percent": 50}, {"version": 2, "percent": 50}]
    guest.engine.ok("POST", f"{path}/deployments", {"versions": halves})
    versions = [guest.run(echo(n), "versions")["version"] for n in range(30)]
    shown = guest.engine.ok("GET", path)

    assert seen == [{1}, {2}, {1}]
    assert set(versions) == {1, 2}
    assert shown["live"] == halves


@pytest.mark.slow
@on_every("env")
def test_a_new_version_has_new_variables(guest: Guest) -> None:
    """What is left out is as before; a new secret needs no version."""
    names = ["RT_PLAIN", "RT_NEW", "RT_TURNS"]
    guest.engine.ok("PUT", "/v1/secrets/RT_TURNS", {"value": "old"})
    name = guest.function("variables", secrets=["RT_TURNS"])
    asked = {"do": "env", "names": names}

    seen = [guest.ask(asked, "variables")]
    change = guest.kind.fields() | {"variables": {"RT_NEW": "1"}}
    guest.engine.ok("POST", f"/v1/functions/{name}/versions?deploy=true", change)
    seen.append(guest.ask(asked, "variables"))
    guest.engine.ok("PUT", "/v1/secrets/RT_TURNS", {"value": "new"})
    seen.append(guest.ask(asked, "variables"))

    assert seen == [["dreißig", None, "old"], [None, "1", "old"], [None, "1", "new"]]


@pytest.mark.slow
@on_every()
def test_runs_of_a_deleted_function_are_cancelled(guest: Guest, device: dict[str, Any]) -> None:
    """Those that wait; nothing that they do afterwards is stored."""
    name = guest.function("deleted")
    steps = [timer(150), write(device, "late", 1)]
    waiting = [
        guest.invoke(steps, "deleted", Prefer="respond-async").json()["execution_id"]
        for _ in range(6)
    ]

    guest.engine.ok("DELETE", f"/v1/functions/{name}")
    beside = guest.ask([timer(300), echo("beside")])

    runs = [guest.ended(execution) for execution in waiting]
    assert [run["status"] for run in runs] == ["cancelled"] * 6
    assert beside[1] == "beside"
    assert events_of(guest, device) == []
    assert guest.engine.client.get(f"/v1/functions/{name}").status_code == 404


# What is told about a run.


@pytest.mark.slow
@on_every()
def test_the_tail_shows_lines_while_it_runs(guest: Guest) -> None:
    """Each line as it is said, then the report."""
    name = guest.function()
    steps = [log("warn", "tail ü"), timer(200), log("info", "late")]
    seen: list[tuple[str, Any]] = []

    with guest.engine.client.stream("GET", f"/v1/functions/{name}/tail") as stream:
        lines = stream.iter_lines()
        assert next(lines) == ": following"
        execution = guest.invoke(steps, Prefer="respond-async").json()["execution_id"]
        for line in lines:
            kind, _, text = line.partition(": ")
            if kind == "event":
                seen.append((text, None))
            elif kind == "data":
                seen[-1] = (seen[-1][0], json.loads(text))
                if len(seen) == 1:
                    early = guest.shown(execution)["status"]
            if len(seen) == 3 and seen[-1][1]:
                break

    assert early in {"queued", "running"}
    assert [kind for kind, _ in seen] == ["log", "log", "report"]
    assert [(data["level"], data["msg"]) for _, data in seen[:2]] == [
        ("warn", "tail ü"), ("info", "late"),
    ]  # fmt: skip
    assert (seen[2][1]["id"], seen[2][1]["status"]) == (execution, "succeeded")


@on_every()
def test_the_record_has_everything(guest: Guest, device: dict[str, Any]) -> None:
    """Input, result, host calls with their answers, effects, figures."""
    work = {"do": "work", "loops": 300_000}
    steps = [
        {"do": "read", "device": device["id"], "key": "k"},
        write(device, "k", 1),
        timer(1),
        work,
    ]

    run = guest.run(steps)

    calls = [(name, ok) for name, _, ok, _ in run["transcript"]]
    assert (run["input"], run["result"]) == (steps, [[], None, None, None])
    assert calls == [("devices.values", True), ("devices.write", True), ("timer", True)]
    assert [effect["kind"] for effect in run["effects"]] == ["write"]
    assert 0 < run["cpu_ms"] <= run["wall_ms"] < 20_000
    assert run["wall_ms"] >= 1
    assert run["peak_memory_bytes"] > 64 * 1024
    assert (run["attempt"], run["cause"], run["version"]) == (1, "invoke", 1)


@pytest.mark.slow
@on_every("exact use")
def test_a_run_has_figures_of_its_own(guest: Guest) -> None:
    """Its CPU is what its own steps took, all together; its memory that of its own instance."""
    work = {"do": "work", "loops": 3_000_000}

    def cpu_ms(count: int) -> float:
        return min(guest.run([work, timer(1)] * count)["cpu_ms"] for _ in range(3))

    small = guest.run(echo(1))
    large = guest.run(echo("x" * 900_000))

    assert 2 < cpu_ms(4) / cpu_ms(1) < 8
    assert small["peak_memory_bytes"] % 65_536 == 0
    assert 900_000 < large["peak_memory_bytes"] < 16 * 2**20
    assert small["fuel"] is None


@on_every("exact use")
def test_a_run_that_the_engine_ends_has_figures(guest: Guest, device: dict[str, Any]) -> None:
    """What it used until then: its cell has not said it was over, and is still asked."""
    work, writes = {"do": "work", "loops": 1_000_000}, write(device, "k", *range(257))

    run = guest.fail([work, timer(1), work, writes], "metered")

    assert run["status"] == "effects_exceeded"
    assert run["cpu_ms"] > 0
    assert run["peak_memory_bytes"] < 2 * 2**20
    assert run["fuel"] > 1_000_000


@on_every("fuel")
def test_fuel_is_counted_and_limited(guest: Guest) -> None:
    """The same run uses the same fuel to the unit; who needs more is stopped."""
    step = [{"do": "work", "loops": 1_000}, echo("ü"), timer(1)]

    first = guest.run(step, "metered")
    over = guest.fail({"do": "work", "loops": 100_000_000}, "metered")
    after = guest.run(step, "metered")

    assert 1_000 < first["fuel"] < LIMITS["metered"]["fuel"]
    assert first["fuel"] == after["fuel"]  # both in a fresh instance
    assert (over["status"], over["limit"]["name"]) == ("cpu_exceeded", "fuel")
    assert over["limit"]["value"] == over["fuel"] == LIMITS["metered"]["fuel"]


# A run is a step: the same version, input, seed, clock and answers give the same run again.

BEGAN_MS = 1_288_310_400_000
SEED = "00112233445566ff"
RECORDED = {
    "devices.values": [{"key": "k", "value": "ü", "datetime": "2010-10-29T00:00:00.000Z"}],
    "timer": None,
}
STEPS = [
    {"do": "clock"}, {"do": "chance", "count": 5}, log("info", "ü"), timer(50), {"do": "clock"},
    {"do": "chance", "count": 1}, {"do": "read", "device": "d", "key": "k"}, {"do": "clock"},
]  # fmt: skip


async def record(sandbox: Sandbox, kind: Kind, program: bytes, seed: str) -> list[str]:
    """Run STEPS in a fresh cell with recorded answers; return every message but the figures."""
    runtime = Runtime.WASM if kind.wasm else Runtime.JAVASCRIPT
    cell = await sandbox.acquire(CellKind(runtime))
    listener = Listener(cell)
    header: dict[str, Any] = {
        "bindings": {"variables": {}, "secrets": {}, "connections": {}},
        "memory_mb": 64,
        "now_ms": BEGAN_MS,
    }
    handler = "default"
    if kind.wasm:
        header |= {"name": "recorded", "options": options_of(kind)}
    elif kind.name == "classic":
        handler = "main"
    context = ["exe_recorded", 1, 1, BEGAN_MS + 9_000, "exe_recorded", 0]
    limits = [1_000, 1_000_000, 256, 65_536]
    cell.send(ToCell.LOAD, 1, packed(msgspec.json.encode(header), program))
    await asyncio.wait_for(listener.heard.get(), 10)
    waiting: list[Any] = [[0, 1, handler, BEGAN_MS, seed, *limits, context, STEPS]]
    kept: list[str] = []
    while waiting:
        cell.send(ToCell.BATCH, 1, json.dumps(waiting).encode())
        said = json.loads(await asyncio.wait_for(listener.heard.get(), 10))
        # Without what it used, which is another figure each time.
        kept += [json.dumps(message[:5]) for message in said if message[0] not in {0, 3}]
        kept += [json.dumps(message[:4]) for message in said if message[0] == 0]
        calls = [message for message in said if message[0] == 1]
        waiting = [
            [1, 1, call, BEGAN_MS + 300 * call, True, RECORDED[operation]]
            for _, _, call, operation, _ in calls
        ]
    cell.kill()
    return kept


def options_of(kind: Kind) -> dict[str, Any]:
    fields = kind.fields()
    return check_options(fields["handlers"], None, None, None, fields.get("reuse")).as_json()


async def built(sandbox: Sandbox, kind: Kind) -> bytes:
    """Return the guest as a program."""
    recipe: dict[str, Any] = {"project_id": "prj_recorded", "name": "recorded", "memory_mb": 64}
    fields = kind.fields()
    if kind.wasm:
        wasm = module("-DCOMMAND") if kind.name == "command" else module(REACTOR)
        recipe |= {"runtime": Runtime.WASM, "body": wasm, "options": options_of(kind)}
    else:
        body = json.dumps({"main.js": fields["source"]}).encode()
        recipe |= {"runtime": Runtime.JAVASCRIPT, "body": body, "main": "main.js"}
    builder = Builder(sandbox, lambda: BEGAN_MS, cell_memory_mb=256)
    return (await builder.build(Recipe(**recipe))).program


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
async def test_the_same_run_twice_is_the_same_run(sandbox: Sandbox, kind: Kind) -> None:
    """Two processes, one record: each line, call and result is equal; another seed, another run."""
    program = await built(sandbox, kind)

    first = await record(sandbox, kind, program, SEED)
    second = await record(sandbox, kind, program, SEED)
    other = await record(sandbox, kind, program, "00112233445566fe")

    done = json.loads(first[-1])
    assert first == second
    assert first != other
    assert done[2] == "ok", done
    began, chance, _, _, later, _, read, last = done[3]
    assert (began, later, last) == (BEGAN_MS, BEGAN_MS + 300, BEGAN_MS + 600)
    assert len(chance) == 5
    assert read == ["ü"]
