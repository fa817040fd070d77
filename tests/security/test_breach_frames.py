"""The assumed breach, seen from the engine: a cell that says whatever it likes.

A real engine whose zygote lets one project's programs run natively in their cells, where they
speak the frames themselves. Another project's functions must answer as ever, nothing of one may
be found with the other, and the engine must live on with the memory it has.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import psutil
import pytest

from tests.conftest import NO_TLS, Engine
from tests.security.breach.attacker import MARK
from tests.security.breach.lies import HEAD, LIES, SUCCEEDED, Lie

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the lockdown is Linux only")

TREASURE = "treasure-of-the-victim"
LOOT = "loot-of-the-attacker"
WALL_MS = 400  # of what has to wait for its end
ENOUGH_MS = 10_000  # of all others, also on a machine that does other things as well
MEMORY_GROWTH_MAX = 400 * 1024 * 1024


class BreachedEngine(Engine):
    """An engine in whose cells the attacker already is."""

    command: ClassVar[tuple[str, ...]] = (
        sys.executable, "-P", str(Path(__file__).parent / "breach" / "serve.py"),
    )  # fmt: skip


class Tenant:
    """One project of the engine, through a key of its own."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine = engine
        made = engine.ok("POST", "/v1/projects", {"name": name})
        self.client = httpx.Client(
            base_url=engine.url,
            headers={"Authorization": f"Bearer {made['key']}"},
            timeout=20,
            verify=NO_TLS,
        )

    def ok(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        response = self.client.request(method, path, json=body, **options)
        assert response.is_success, (response.status_code, response.text)
        return response.json() if response.content else None

    def invoke(self, name: str, params: Any = None) -> httpx.Response:
        return self.client.post(f"/v1/functions/{name}/invoke", json=params)

    def newest(self, name: str) -> dict[str, Any]:
        found = self.ok("GET", "/v1/executions", params={"function": name, "limit": 1})["items"]
        return self.ok("GET", f"/v1/executions/{found[0]['id']}")


class Scene:
    """The engine, its attacker and its victim, and what each test looks at afterwards."""

    def __init__(self, engine: BreachedEngine) -> None:
        self.engine = engine
        self.attacker = Tenant(engine, "attacker")
        self.victim = Tenant(engine, "victim")
        self.process = psutil.Process(engine.process.pid)
        self.victim.ok(
            "POST", "/v1/functions",
            {"name": "victim", "source": f"function main(p, cb) {{ cb(null, [p, '{TREASURE}']) }}"},
        )  # fmt: skip
        self.victim.ok("POST", "/v1/products", {"name": "safe"})
        self.device = self.victim.ok("POST", "/v1/devices", {"product": "safe", "name": "one"})
        self.victim.ok("PUT", "/v1/kv/victim/treasure", TREASURE)
        self.answered = 0
        self.victim_answers()
        self.memory_bytes = self.process.memory_info().rss

    def deploy(self, lie: Lie, number: int) -> str:
        name = f"lie_{number}"
        wall_ms = WALL_MS if "timed_out" in lie.ends else ENOUGH_MS
        code = lie.code.replace("$DEVICE", self.device["id"]).replace("$ENGINE", self.engine.url)
        code = code.replace("$TOKEN", self.device.get("token", "none"))
        code = code.replace("$RUN", self.victim.newest("victim")["id"])
        self.attacker.ok(
            "POST", "/v1/functions",
            {"name": name, "source": f"{MARK}\n{HEAD}\n{code}", "limits": {"wall_ms": wall_ms}},
        )  # fmt: skip
        return name

    def close(self) -> None:
        self.attacker.client.close()
        self.victim.client.close()

    def victim_answers(self) -> None:
        self.answered += 1
        response = self.victim.invoke("victim", self.answered)
        assert response.json() == [self.answered, TREASURE], response.text


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with contextlib.ExitStack() as stack:
        engine = BreachedEngine(tmp_path_factory.mktemp("breach") / "data", warm_cells="2")
        engine.start()
        stack.callback(engine.stop)
        scene = Scene(engine)
        stack.callback(scene.close)
        yield scene


@pytest.mark.parametrize(
    ("number", "lie"),
    [pytest.param(n, lie, id=f"{lie.group}-{lie.name}") for n, lie in enumerate(LIES)],
)
def test_a_lying_cell_harms_its_own_run_alone(scene: Scene, number: int, lie: Lie) -> None:
    """Its run ends as the table says; the neighbour answers; the engine keeps its memory."""
    name = scene.deploy(lie, number)

    answer = scene.attacker.invoke(name, LOOT)
    if "while the version was loaded" in answer.text:  # by what the lie before still had to say
        answer = scene.attacker.invoke(name, LOOT)
    scene.victim_answers()

    execution = scene.attacker.newest(name)
    assert execution["status"] in lie.ends, (answer.text, execution)
    assert TREASURE not in answer.text + str(execution)
    assert not lie.refused or answer.json()["ok"] is False
    assert scene.engine.process.poll() is None
    assert scene.process.memory_info().rss - scene.memory_bytes < MEMORY_GROWTH_MAX


BUILDS = {
    "a program that nobody asked for": "cell.frame('b', b'{}')",
    "handlers that are a number": """cell.frame('l', b'{"handlers":7}')""",
    "an answer that is not UTF-8": "cell.frame('l', b'\\xff\\xfe')",
    "an output in a build": "cell.output([DONE, 1, 'ok', 1])",
    "a stop that is a list": "cell.frame('k', b'[]')",
    "an error that is a number": "cell.frame('e', b'7')",
    "a fault of the cell": "cell.frame('x', b'oops')\n    os._exit(70)",
    "the end of its process": "os._exit(0)",
}


@pytest.mark.parametrize("lie", BUILDS)
def test_a_lie_of_a_cell_that_builds_is_an_error_of_the_upload(scene: Scene, lie: str) -> None:
    """It stores no version and hangs nobody: the uploader is told, and the others build on."""
    source = f"{MARK}\ndef trial():\n    {BUILDS[lie]}\n"

    answer = scene.attacker.client.post("/v1/functions", json={"name": "built", "source": source})
    scene.victim_answers()

    assert answer.status_code in {422, 503}, answer.text
    assert scene.attacker.client.get("/v1/functions/built").status_code == 404
    assert scene.engine.process.poll() is None


def test_a_cell_that_works_unasked_is_ended(scene: Scene) -> None:
    """Native code that goes on after its run has ended takes no CPU time from others for long."""
    code = (
        "def spin():\n    while True: pass\n"
        "def batch(messages):\n    cell.done(starts(messages)[0], os.getpid())\n"
        "    threading.Thread(target=spin, daemon=True).start()"
    )
    lie = Lie(name="work unasked", group="out of turn", code=code, ends=SUCCEEDED)
    name = scene.deploy(lie, 9999)

    answer = scene.attacker.invoke(name)

    assert answer.is_success, answer.text
    scene.engine.until(lambda: "cell_worked_unasked" in scene.engine.stderr(), seconds=10)
    scene.victim_answers()


def test_lies_have_names_of_their_own() -> None:
    """No lie hides another one: the table in sandbox/README.md counts them."""
    names = [(lie.group, lie.name) for lie in LIES]

    assert len(names) == len(set(names))


def test_nothing_has_crossed_over(scene: Scene) -> None:
    """After all of them, each project holds what it held: its own runs, with its own results."""
    scene.victim_answers()

    runs = scene.victim.ok("GET", "/v1/executions", params={"limit": 200})["items"]
    attackers = scene.attacker.ok("GET", "/v1/executions", params={"limit": 200})["items"]
    kept = scene.victim.ok("GET", "/v1/kv/victim/treasure")

    assert {run["function"] for run in runs} == {"victim"}
    assert {run["status"] for run in runs} == {"succeeded"}
    assert len(runs) == min(200, scene.answered)
    assert LOOT not in str([scene.victim.ok("GET", f"/v1/executions/{run['id']}") for run in runs])
    assert TREASURE not in str(attackers)
    assert TREASURE in str(kept)
