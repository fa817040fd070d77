"""Functions that call functions: after the caller has succeeded, or not at all.

The facts hold for callers in JavaScript (`env.FN.call`) and in WebAssembly (`function.call`).
"""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Engine
from tests.contracts.guests.kinds import KINDS

CALLER = """
export default async function (p, env) {
  const told = [];
  for (const { function: name, payload, ...options } of p.calls) {
    try {
      told.push({ value: await env.FN.call(name, payload, options) });
    } catch (error) {
      told.push({ error: { message: error.message, code: error.code } });
    }
  }
  if (p.fail) throw new Error("after the calls");
  return told;
}
"""
CALLED = """
export default {
  async job(payload, env, ctx) { return { payload, rootId: ctx.rootId, depth: ctx.depth } },
  async afterStore(payload) { return "afterStore" },
};
"""
DEEP = "export default async (n, env) => (await env.FN.call('fc-deep', n + 1)).execution_id"


class Caller:
    """A function that calls others, as its parameters say."""

    def __init__(self, engine: Any, name: str, *, wasm: bool) -> None:
        self._engine = engine
        self.name = name
        self._wasm = wasm

    def run(self, *calls: dict[str, Any], fail: bool = False) -> dict[str, Any]:
        """Make the calls in one run; return its execution, with what it was told as `told`."""
        params: Any = {"calls": calls, "fail": fail}
        if self._wasm:
            asks = [{"do": "call", "operation": "function.call", "arguments": one} for one in calls]
            params = [{"do": "try", "step": ask} for ask in asks]
            params += [{"do": "fail", "message": "after the calls"}] if fail else []
        answer = self._engine.invoke(self.name, params)
        execution = answer.headers["execution-id"]
        shown = self._engine.ok("GET", f"/v1/executions/{execution}")
        return shown | {"told": answer.json()}

    def ended(self, execution: str) -> dict[str, Any]:
        path = f"/v1/executions/{execution}"
        return self._engine.until(
            lambda: (
                (found := self._engine.ok("GET", path))["status"] not in {"queued", "running"}
                and found
            )
        )


@pytest.fixture(scope="module")
def engine(
    tmp_path_factory: pytest.TempPathFactory, database_settings: dict[str, str]
) -> Iterator[Engine]:
    """One for all tests of a module, on each kind of database."""
    running = Engine(tmp_path_factory.mktemp("calls") / "data", **database_settings).start()
    yield running
    running.stop()


@pytest.fixture(scope="module", autouse=True)
def called(engine: Any) -> None:
    engine.deploy("fc-called", CALLED)
    engine.deploy("fc-deep", DEEP)
    engine.deploy("fc-http", "export default { fetch() { return new Response('x') } }")


@pytest.fixture(scope="module", params=["javascript", "wasm"])
def caller(request: pytest.FixtureRequest, engine: Any) -> Caller:
    name = f"fc-caller-{request.param}"
    if request.param == "javascript":
        engine.deploy(name, CALLER)
    else:
        core = next(kind for kind in KINDS if kind.name == "core")
        engine.ok("POST", "/v1/functions", {"name": name, **core.fields()})
    return Caller(engine, name, wasm=request.param == "wasm")


def call(payload: Any = None, function: str = "fc-called", **options: str) -> dict[str, Any]:
    return {"function": function, "payload": payload, **options}


def test_the_called_function_runs(caller: Caller) -> None:
    """With its payload, in a run of its own that knows its root; the caller's effects show it."""
    run = caller.run(call({"ü": [1, None]}), call(None, handler="afterStore"))

    (first, second) = [told["value"]["execution_id"] for told in run["told"]]
    ended = caller.ended(first)
    assert (ended["status"], ended["cause"], ended["handler"]) == ("succeeded", "call", "job")
    assert ended["result"] == {"payload": {"ü": [1, None]}, "rootId": run["id"], "depth": 1}
    assert caller.ended(second)["result"] == "afterStore"
    assert run["effects"] == [
        {"kind": "call", "function": "fc-called", "execution_id": first},
        {"kind": "call", "function": "fc-called", "execution_id": second},
    ]


def test_a_run_that_fails_has_called_nobody(engine: Any, caller: Caller) -> None:
    """All or nothing: the execution that was announced never comes to be."""
    before = len(engine.executions(function="fc-called"))

    run = caller.run(call(1), fail=True)

    engine.settled()
    assert run["status"] == "failed"
    assert run["effects"] == []
    assert len(engine.executions(function="fc-called")) == before


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (call(function="fc-nobody"), "no function 'fc-nobody' in this project"),
        (call(handler="trigger"), "there is no handler 'trigger'; this version has"),
        (call(function="fc-http"), "fc-http has no handler but fetch"),
        (call(function=7), "Expected `str`, got `int`"),  # type: ignore[arg-type]  # on purpose
    ],
    ids=["unknown", "handler", "fetch only", "wrong type"],
)
def test_what_cannot_be_called_is_told(caller: Caller, asked: dict[str, Any], why: str) -> None:
    """The caller gets an error that it can catch, and goes on."""
    run = caller.run(asked, call(1))

    refused, done = run["told"]
    assert why in refused["error"]["message"]
    assert done["value"]["execution_id"].startswith("exe_")
    assert len(run["effects"]) == 1


def test_a_hundred_calls_and_no_more(caller: Caller) -> None:
    """The limit is named, with its number, and nobody is called."""
    calls = [call(n) for n in range(101)]

    run = caller.run(*calls)

    assert run["status"] == "effects_exceeded"
    assert run["limit"] == {"name": "function_calls", "value": 100, "used": 101}


def test_a_function_that_calls_itself_comes_to_an_end(engine: Any) -> None:
    """Eight deep; the ninth is refused, and its run fails."""
    first = engine.invoke("fc-deep", 0)
    root = first.headers["execution-id"]

    def chain() -> list[dict[str, Any]]:
        found = [
            engine.ok("GET", f"/v1/executions/{run['id']}")
            for run in engine.executions(function="fc-deep")
        ]
        return [run for run in found if run["root_id"] == root]

    engine.until(lambda: any(run["status"] == "failed" for run in chain()))
    runs = sorted(chain(), key=lambda run: run["depth"])
    assert [run["depth"] for run in runs] == list(range(9))
    assert [run["status"] for run in runs] == ["succeeded"] * 8 + ["failed"]
    assert "8 calls deep already; the most is 8" in runs[-1]["error"]["message"]


def test_calls_survive_the_end_of_the_engine(own_engine: Any) -> None:
    """Called and killed at once: the call is in the store with the caller's record, and runs."""
    engine = own_engine()
    engine.deploy("called", "export default (n) => n * 2")
    engine.deploy("caller", "export default (n, env) => env.FN.call('called', n)")
    called = [engine.invoke("caller", n).json()["execution_id"] for n in range(20)]

    engine.kill()
    engine.start()

    results = [
        engine.until(
            lambda path=f"/v1/executions/{one}": (
                engine.ok("GET", path).get("result") is not None and engine.ok("GET", path)
            )
        )["result"]
        for one in called
    ]
    assert results == [n * 2 for n in range(20)]
    assert len(engine.executions(function="called")) == 20
