"""WebAssembly guests that attack time, memory, the host and the compiler; each says how it ends.

After each, three neighbours in the same project answer as ever: one in JavaScript, one in
WebAssembly, and one that counts its runs in its own memory. Its count goes on only while the cell,
which it shares with the hostile guest, has not been replaced.
"""

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from wasmtime import wat2wasm

from tests.security.wasm_guests.binaries import HEADER, MALFORMED, generated_guests, module
from tests.security.wasm_guests.expectations import REFUSED, Guest, is_result, text_guests

GUESTS = text_guests() + generated_guests()
STATUS = {"succeeded": 200, "timed_out": 504}
LOG_LINES_MAX = 257  # the last one says how many are missing
TOO_MUCH = "loops_a_thousand_around_a_thousand_locals"
ANSWER_MS_MAX = 3_000  # of a neighbour, on a machine that does other things as well

# Counts its runs from 1000 to 9999.
COUNTER = """
(module
  (memory (export "memory") 1)
  (global $runs (mut i32) (i32.const 999))
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (local $rest i32) (local $at i32)
    (global.set $runs (i32.add (global.get $runs) (i32.const 1)))
    (local.set $rest (global.get $runs))
    (local.set $at (i32.const 3))
    (loop $digits
      (i32.store8 (local.get $at)
        (i32.add (i32.const 48) (i32.rem_u (local.get $rest) (i32.const 10))))
      (local.set $rest (i32.div_u (local.get $rest) (i32.const 10)))
      (local.set $at (i32.sub (local.get $at) (i32.const 1)))
      (br_if $digits (local.get $rest)))
    (i64.const 4)))
"""
# Gives back its input.
ECHO = """
(module
  (memory (export "memory") 17)
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (i64.or
      (i64.shl (i64.extend_i32_u (local.get 0)) (i64.const 32))
      (i64.extend_i32_u (local.get 1)))))
"""
# Input 1: loops for ever. Input 2: sleeps for 300 ms. Counts in memory, and answers with the count.
MOODY = r"""
(module
  (import "engine" "call" (func $call (param i32 i32) (result i64)))
  (memory (export "memory") 1)
  (data (i32.const 100) "{\"operation\":\"timer\",\"arguments\":{\"ms\":300}}")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (i32.store8 (i32.const 0) (i32.add (i32.load8_u (i32.const 0)) (i32.const 1)))
    (i32.store8 (i32.const 1) (i32.add (i32.load8_u (i32.const 0)) (i32.const 48)))
    (if (i32.eq (i32.load8_u (local.get 0)) (i32.const 49)) (then (loop $again (br $again))))
    (if (i32.eq (i32.load8_u (local.get 0)) (i32.const 50))
      (then (drop (call $call (i32.const 100) (i32.const 44)))))
    (i64.const 0x00000001_00000001)))
"""


class Project:
    """The project of the shared engine, as these tests use it."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def upload(self, name: str, wasm: bytes, **fields: Any) -> httpx.Response:
        text = base64.b64encode(wasm).decode()
        asked = {"name": name, "runtime": "wasm", "wasm": text, **fields}
        return self.engine.client.post("/v1/functions", json=asked)

    def deploy(self, name: str, wasm: bytes, **fields: Any) -> None:
        response = self.upload(name, wasm, **fields)
        assert response.status_code == 201, response.text

    def last(self, name: str) -> dict[str, Any]:
        """Return all that is known of the latest run."""
        newest = self.engine.ok("GET", "/v1/executions", params={"function": name, "limit": 1})
        return self.engine.ok("GET", f"/v1/executions/{newest['items'][0]['id']}")

    def count(self) -> int:
        return self.engine.invoke("wasm_counter").json()

    def neighbours_answer(self) -> None:
        assert self.engine.invoke("wasm_echo", [41]).json() == [41]
        assert self.engine.invoke("wasm_neighbour_js", 41).json() == 42


@pytest.fixture(scope="module")
def project(engine: Any) -> Project:
    here = Project(engine)
    here.deploy("wasm_counter", wat2wasm(COUNTER), reuse=True)
    here.deploy("wasm_echo", wat2wasm(ECHO))
    engine.deploy("wasm_neighbour_js", "function main(p, cb) { cb(null, p + 1) }")
    return here


@pytest.fixture
def unharmed(project: Project, request: pytest.FixtureRequest) -> Iterator[None]:
    """The neighbours are as they were: the test has not cost the project its cell."""
    before = project.count()
    yield
    project.neighbours_answer()
    guest = getattr(request.node, "callspec", None) and request.node.callspec.params.get("guest")
    if guest is None or guest.keeps_cell:
        assert project.count() == before + 1, "the cell was replaced"


@pytest.mark.slow
@pytest.mark.parametrize("guest", GUESTS, ids=lambda guest: guest.name)
def test_guest_ends_as_it_says(project: Project, unharmed: None, guest: Guest) -> None:
    """The upload is refused, or the run ends, as the first lines of the guest say."""
    name = f"wasm_{guest.name}"

    upload = project.upload(name, guest.module(), limits=guest.limits, **guest.options)

    if guest.outcome == REFUSED:
        check_refusal(upload, guest.words)
        return
    assert upload.status_code == 201, upload.text
    answer = project.engine.invoke(name)
    check_end(project, guest, answer)


def check_refusal(upload: httpx.Response, words: tuple[str, ...]) -> None:
    assert upload.status_code == 422, upload.text
    problem = upload.json()
    assert problem["code"] == "compile_error"
    assert [error["pointer"] for error in problem["errors"]] == ["/wasm"]
    assert len(upload.content) < 16 * 1024
    for word in words:
        assert word in problem["detail"]


def check_end(project: Project, guest: Guest, answer: httpx.Response) -> None:
    execution = project.last(f"wasm_{guest.name}")
    assert execution["status"] == guest.outcome, answer.text[:1000]
    assert answer.status_code == STATUS.get(guest.outcome, 502), answer.text[:1000]
    path = f"/v1/executions/{execution['id']}"
    assert project.engine.ok("GET", path)["restarts"] == 0
    if guest.limit:
        assert execution["limit"]["name"] == guest.limit
        least = 0.9 if guest.limit == "memory_mb" else 1
        assert execution["limit"]["used"] >= least * execution["limit"]["value"]
    if guest.error:
        name, *words = guest.error
        assert execution["error"]["name"] == name
        for word in words:
            assert word in execution["error"]["message"]
    if guest.result:
        assert is_result(guest, answer.json())
    # Operators can read the log as well as the record, whatever the guest put into them.
    lines = project.engine.ok(
        "GET", f"/v1/executions/{execution['id']}/logs", params={"limit": 200}
    )
    assert len(lines["items"]) <= LOG_LINES_MAX


@pytest.mark.slow
@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_module_is_refused(project: Project, name: str) -> None:
    """Bytes that are no module are refused with the reason, before anything of them runs."""
    upload = project.upload(f"wasm_{name}", MALFORMED[name])

    check_refusal(upload, ())


@pytest.mark.slow
def test_neighbours_answer_while_a_module_is_too_much_for_the_compiler(project: Project) -> None:
    """What one compiler process eats up is not taken from those that run."""
    bomb = next(guest for guest in GUESTS if guest.name == TOO_MUCH)
    slowest_ms = 0.0

    with ThreadPoolExecutor(1) as pool:
        upload = pool.submit(project.upload, "wasm_bomb", bomb.module())
        while not upload.done():
            started = time.monotonic()
            project.neighbours_answer()
            slowest_ms = max(slowest_ms, (time.monotonic() - started) * 1000)

    assert upload.result().status_code == 422
    assert slowest_ms < ANSWER_MS_MAX


@pytest.mark.slow
def test_the_log_of_a_flood_ends_with_what_is_missing(project: Project) -> None:
    """Of 5000 lines the first are kept, and the last says how many are not."""
    project.deploy("wasm_flood", guest_named("log_flood"), limits={"cpu_ms": 2_000})

    execution = project.engine.invoke("wasm_flood").headers["execution-id"]

    lines: list[dict[str, Any]] = []
    cursor = None
    while cursor or not lines:
        asked = {"limit": 200} | ({"cursor": cursor} if cursor else {})
        page = project.engine.ok("GET", f"/v1/executions/{execution}/logs", params=asked)
        lines += page["items"]
        cursor = page["next_cursor"]
    assert len(lines) == LOG_LINES_MAX
    assert str(5_000 - LOG_LINES_MAX + 1) in lines[-1]["msg"]


@pytest.mark.slow
def test_fuel_is_the_same_each_time_and_ends_a_run_where_it_is_used_up(project: Project) -> None:
    """A run that was seen to need so much fuel succeeds on it, again and again; on half it ends."""
    name, wasm = "wasm_fuel", guest_named("memory_grow_loop")
    project.deploy(name, wasm, limits={"fuel": 1_000_000, "memory_mb": 8})
    used = []
    for _ in range(3):
        project.engine.invoke(name)
        used.append(project.last(name)["fuel"])

    project.deploy(f"{name}_enough", wasm, limits={"fuel": used[0] + 1, "memory_mb": 8})
    enough = project.engine.invoke(f"{name}_enough")
    project.deploy(f"{name}_half", wasm, limits={"fuel": used[0] // 2, "memory_mb": 8})
    project.engine.invoke(f"{name}_half")

    assert used == [used[0]] * 3
    assert used[0] > 128
    assert enough.json() == 128
    half = project.last(f"{name}_half")
    assert half["status"] == "cpu_exceeded"
    assert half["limit"] == {"name": "fuel", "value": used[0] // 2, "used": used[0] // 2}


@pytest.mark.slow
def test_an_instance_that_was_stopped_is_not_used_again(project: Project, unharmed: None) -> None:
    """What a stopped run left in memory, no later run sees, although the version has `reuse`."""
    limits = {"cpu_ms": 50}
    project.deploy("wasm_moody", wat2wasm(MOODY), reuse=True, limits=limits)

    counts = [project.engine.invoke("wasm_moody", 0).json() for _ in range(2)]
    stopped = project.engine.invoke("wasm_moody", 1)
    after = project.engine.invoke("wasm_moody", 0).json()

    assert counts == [1, 2]
    assert stopped.json()["code"] == "cpu_exceeded"
    assert after == 1


@pytest.mark.slow
def test_runs_of_a_stopped_version_that_wait_go_on(project: Project, unharmed: None) -> None:
    """One run is stopped while others of its version wait for the engine: those succeed at once."""
    project.deploy("wasm_moody_waits", wat2wasm(MOODY), limits={"cpu_ms": 50})

    def invoke(mood: int) -> httpx.Response:
        url = f"{project.engine.url}/v1/functions/wasm_moody_waits/invoke"
        return httpx.post(url, headers=project.engine.headers, json=mood, timeout=30)

    with ThreadPoolExecutor(12) as pool:
        waits = [pool.submit(invoke, 2) for _ in range(8)]
        loops = [pool.submit(invoke, 1) for _ in range(2)]
        waited = [future.result() for future in waits]
        looped = [future.result() for future in loops]

    assert [answer.text for answer in waited] == ["1"] * 8
    assert {answer.json()["code"] for answer in looped} == {"cpu_exceeded"}
    ids = [one["id"] for one in project.engine.executions(function="wasm_moody_waits")]
    assert {project.engine.ok("GET", f"/v1/executions/{one}")["restarts"] for one in ids} == {0}


@pytest.mark.slow
@pytest.mark.alone  # a cell that has no CPU for 250 ms when their time is over is replaced
def test_a_hundred_runs_that_sleep_for_ever_end_by_wall_time(
    project: Project, unharmed: None
) -> None:
    """Each run that waits holds a thread and a memory; more than there may be just wait longer."""
    name = "wasm_sleepers"
    limits = {"wall_ms": 400, "cpu_ms": 50}
    project.deploy(name, guest_named("timer_of_an_hour"), limits=limits)

    for _ in range(100):
        response = project.engine.client.post(
            f"/v1/functions/{name}/invoke", headers={"Prefer": "respond-async"}
        )
        assert response.status_code == 202
    project.neighbours_answer()

    def ended() -> list[dict[str, Any]]:
        return [one for one in project.engine.executions(function=name) if one["limit"]]

    project.engine.until(lambda: len(ended()) == 100, seconds=30)
    assert {one["status"] for one in ended()} == {"timed_out"}


@pytest.mark.slow
def test_wall_time_holds_while_the_cell_is_kept_busy(project: Project) -> None:
    """A run that sleeps too long ends in time, although its version is never idle."""
    name = "wasm_busy"
    project.deploy(name, wat2wasm(MOODY), limits={"wall_ms": 200, "cpu_ms": 100})
    over = threading.Event()

    def keep_busy() -> None:
        with httpx.Client(headers=project.engine.headers) as client:
            while not over.is_set():
                client.post(f"{project.engine.url}/v1/functions/{name}/invoke", json=0)

    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            pool.submit(keep_busy)
        execution = project.engine.invoke(name, 2).json()["execution_id"]
        over.set()

    record = project.engine.ok("GET", f"/v1/executions/{execution}")
    assert record["status"] == "timed_out"
    assert record["wall_ms"] < ANSWER_MS_MAX


INPUTS = {
    "half_a_pair": b'"\\ud800"',
    "half_a_pair_within": b'["a\\udc00b"]',
    "nul": b'"\\u0000"',
    "number_out_of_range": b"1e400",
    "digits": b"9" * 5_000,
    "keys_twice": b'{"a":1,"a":2}',
    "empty": b"",
    "spaces": b"  ",
    "string_and_spaces": b'  "a"  ',
    "as_long_as_can_be": b'"' + b"a" * 1_048_000 + b'"',
}


@pytest.mark.slow
@pytest.mark.parametrize("io", ["json", "text"])
@pytest.mark.parametrize("text", INPUTS.values(), ids=INPUTS)
def test_an_odd_input_harms_nobody(
    project: Project, unharmed: None, echo_of: Callable[[str], str], io: str, text: bytes
) -> None:
    """Whoever invokes a function gets an answer or a refusal for it, never a broken cell."""
    name = echo_of(io)

    answer = project.engine.client.post(
        f"/v1/functions/{name}/invoke",
        content=text,
        headers={"content-type": "application/json"},
    )

    assert answer.status_code in {200, 400, 422}, answer.text[:1000]


@pytest.fixture(scope="module")
def echo_of(project: Project) -> Callable[[str], str]:
    limits = {"cpu_ms": 2_000}
    for io in ("json", "text"):
        project.deploy(f"wasm_echo_{io}", wat2wasm(ECHO), io=io, limits=limits)
    return lambda io: f"wasm_echo_{io}"


RESPONSES: dict[str, Any] = {
    "status_0": {"status": 0},
    "status_99": {"status": 99},
    "status_101": {"status": 101},
    "status_1000": {"status": 1000},
    "status_negative": {"status": -1},
    "status_true": {"status": True},
    "status_huge": {"status": 10**30},
    "status_204_with_body": {"status": 204, "body": "x"},
    "header_with_line_end": {"status": 200, "headers": {"x-a": "b\r\nx-injected: 1"}},
    "header_name_with_line_end": {"status": 200, "headers": {"x-a: b\r\nx-injected": "1"}},
    "header_name_empty": {"status": 200, "headers": {"": "b"}},
    "header_with_nul": {"status": 200, "headers": {"x-a": "b\0"}},
    "header_not_latin": {"status": 200, "headers": {"x-a": "\u2603"}},
    "header_number": {"status": 200, "headers": {"x-a": 1}},
    "header_list_of_triples": {"status": 200, "headers": [["x-a", "b", "c"]]},
    "headers_as_text": {"status": 200, "headers": "x-injected: 1"},
    "headers_as_a_number": {"status": 200, "headers": 7},
    "length_that_lies": {"status": 200, "headers": {"content-length": "1000000"}, "body": "x"},
    "length_and_chunks": {"status": 200, "headers": {"transfer-encoding": "chunked"}, "body": "x"},
    "execution_of_another": {"status": 200, "headers": {"execution-id": "exe_1"}},
    "body_not_base64": {"status": 200, "body": "!!", "body_base64": True},
    "body_not_ascii_base64": {"status": 200, "body": "\u2603", "body_base64": True},
    "body_object_as_base64": {"status": 200, "body": {"a": 1}, "body_base64": True},
    "body_half_a_pair": {"status": 200, "body": "\ud800"},
    "headers_10000": {"status": 200, "headers": {f"x-{n}": "y" for n in range(10_000)}},
}


@pytest.mark.slow
@pytest.mark.parametrize("response", RESPONSES.values(), ids=RESPONSES)
def test_an_odd_response_harms_nobody(
    project: Project, unharmed: None, request: pytest.FixtureRequest, response: Any
) -> None:
    """A fetch handler's response is sent, made harmless or refused; nothing is injected."""
    name = f"wasm_fetch_{request.node.callspec.id}"
    text = json.dumps(response).encode()
    project.deploy(name, answering(text), handlers=["fetch"])

    answer = httpx.get(f"{project.engine.url}/f/default/{name}", timeout=30)

    assert answer.status_code != 500, answer.text[:1000]
    assert "x-injected" not in answer.headers
    assert answer.headers["execution-id"] != "exe_1"
    assert project.last(name)["status"] in {"succeeded", "failed"}


def answering(text: bytes) -> bytes:
    """Return a core module whose result is always `text`."""
    escaped = "".join(f"\\{byte:02x}" for byte in text)
    return wat2wasm(f"""
(module
  (memory (export "memory") 32)
  (data (i32.const 2048) "{escaped}")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64) (i64.const {2048 << 32 | len(text)})))
""")


def guest_named(name: str) -> bytes:
    return next(guest for guest in GUESTS if guest.name == name).module()


def test_all_guests_differ() -> None:
    """No guest hides another of the same name, and the module that most are made of is one."""
    names = [guest.name for guest in GUESTS]

    assert len(names) == len(set(names))
    assert module().startswith(HEADER)
