"""Guest programs that attack time, memory, the prelude and the host; each says how it must end.

While one runs, another tenant's function answers as ever, and so does, after it, another function
of the same project. How much slower a tenant may get beside them: `test_neighbours.py`.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.stacks import authors_stack
from runtimes.contract import GuestError
from tests.conftest import NO_TLS

GUESTS = sorted((Path(__file__).parent / "guests").glob("*.js"))
EXPECTATION = re.compile(
    r"// expect: (?P<outcomes>[\w|]+)(?: (?P<limit>(?!limits=)\w+))?(?: limits=(?P<limits>\S+))?\n"
)
STATUS = {"succeeded": 200, "timed_out": 504}
REFUSED = "refused"  # already the upload is
WALL_MS = 30_000  # where a program does not say: it is about another limit
# Of each kind of hostility some, for the projects whose cells make no machine code. They have no
# WebAssembly: there is nothing of it to attack.
HARDENED = (
    "loop_sync", "loop_await", "loop_async_generator", "recursion_caught", "regex_backtracking",
    "json_bomb", "sort_typed_array", "to_json_loop", "promise_species", "heap_objects",
    "memory_microtasks", "typed_arrays", "globals_absent", "callers_of_the_handler",
    "pollution_getters", "globals_frozen",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """How a program says that it ends."""

    outcomes: frozenset[str]
    limit: str | None
    limits: dict[str, int]


def expectation(source: str) -> Expectation:
    """Read a program's first line: `// expect: OUTCOME[|OUTCOME] [LIMIT] [limits=cpu_ms=50,..]`."""
    said = EXPECTATION.match(source)
    assert said is not None, source[:200]
    limits = dict(part.split("=") for part in (said["limits"] or "").split(",") if part)
    return Expectation(
        outcomes=frozenset(said["outcomes"].split("|")),
        limit=said["limit"],
        limits={"wall_ms": WALL_MS} | {name: int(value) for name, value in limits.items()},
    )


class Tenant:
    """Somebody with a project of their own on the shared engine."""

    def __init__(self, engine: Any, name: str, **fields: Any) -> None:
        made = engine.ok("POST", "/v1/projects", {"name": name, **fields})
        headers = {"Authorization": f"Bearer {made['key']}"}
        self.client = httpx.Client(base_url=engine.url, headers=headers, timeout=60, verify=NO_TLS)

    def deploy(self, name: str, source: str, **fields: Any) -> httpx.Response:
        return self.client.post("/v1/functions", json={"name": name, "source": source, **fields})

    def invoke(self, name: str, params: Any = None) -> httpx.Response:
        return self.client.post(f"/v1/functions/{name}/invoke", json=params)

    def execution(self, function: str) -> dict[str, Any]:
        """Return the record of the function's latest run."""
        found = self.client.get("/v1/executions", params={"function": function, "limit": 1})
        record: dict[str, Any] = found.json()["items"][0]
        return record


@pytest.fixture(scope="module")
def attacker(engine: Any) -> Iterator[Tenant]:
    """The project of all programs, with a function beside them that means no harm."""
    tenant = Tenant(engine, "hostile")
    tenant.deploy("beside", "function main(p, cb) { cb(null, p + 1) }")
    yield tenant
    tenant.client.close()


@pytest.fixture(scope="module")
def hardened_attacker(engine: Any) -> Iterator[Tenant]:
    """The same, hardened."""
    tenant = Tenant(engine, "hostile-hardened", isolation="hardened")
    tenant.deploy("beside", "function main(p, cb) { cb(null, p + 1) }")
    yield tenant
    tenant.client.close()


@pytest.fixture(scope="module")
def neighbour(engine: Any) -> Iterator[Tenant]:
    """Another project, which must not notice."""
    tenant = Tenant(engine, "unconcerned")
    tenant.deploy("twice", "let n = 0; export default (p) => [2 * p, ++n]")
    tenant.invoke("twice", 0)
    yield tenant
    tenant.client.close()


@contextmanager
def answering(tenant: Tenant) -> Iterator[Callable[[], int]]:
    """Have a tenant's function called all the time; each answer has to be right."""
    over = threading.Event()
    right_count = 0

    def call() -> None:
        nonlocal right_count
        while not over.wait(0.02):
            answer = tenant.invoke("twice", right_count)
            assert answer.status_code == 200, answer.text
            assert answer.json()[0] == 2 * right_count
            right_count += 1

    with ThreadPoolExecutor(1) as pool:
        called = pool.submit(call)
        try:
            yield lambda: right_count
        finally:
            over.set()
            called.result()


def plays_out(tenant: Tenant, neighbour: Tenant, guest: Path) -> None:
    """Run one program to its end, and look at everybody else."""
    source, name = guest.read_text(), guest.stem
    expected = expectation(source)
    life = neighbour.invoke("twice", 0).json()[1]

    with answering(neighbour) as right_count:
        made = tenant.deploy(name, source, limits=expected.limits)
        if expected.outcomes == {REFUSED}:
            assert made.status_code == 422, made.text
        else:
            assert made.status_code == 201, made.text
            ends_as_expected(tenant, name, expected)

    assert tenant.invoke("beside", 41).json() == 42
    # One more for each call: the neighbour's cell is the one that it was before.
    assert neighbour.invoke("twice", 0).json()[1] == life + right_count() + 1


def ends_as_expected(tenant: Tenant, name: str, expected: Expectation) -> None:
    answer = tenant.invoke(name)

    execution = tenant.execution(name)
    outcome = execution["status"]
    assert outcome in expected.outcomes, answer.text
    assert answer.status_code == STATUS.get(outcome, 502), answer.text
    if expected.limit:
        assert execution["limit"]["name"] == expected.limit
        assert execution["limit"]["used"] >= execution["limit"]["value"]
    if outcome == "succeeded":  # and once more, in what it has made of its isolate
        again = tenant.invoke(name)
        assert again.status_code == 200, again.text


@pytest.mark.slow
@pytest.mark.parametrize("guest", GUESTS, ids=lambda path: path.stem)
def test_guest_ends_as_it_says(attacker: Tenant, neighbour: Tenant, guest: Path) -> None:
    """The run ends with the outcome and the limit of its first line; nobody else notices."""
    plays_out(attacker, neighbour, guest)


@pytest.mark.slow
@pytest.mark.parametrize("name", HARDENED)
def test_guest_ends_as_it_says_where_v8_only_interprets(
    hardened_attacker: Tenant, neighbour: Tenant, name: str
) -> None:
    """A hardened project keeps the same promises."""
    plays_out(hardened_attacker, neighbour, Path(__file__).parent / "guests" / f"{name}.js")


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
