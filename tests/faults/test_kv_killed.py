"""The engine is killed right after it accepted runs that change the key-value store."""

from collections.abc import Callable

import pytest

from tests.conftest import Engine

RUNS = 40
SOURCE = """
export async function job({ n }, env) {
  await env.KV.put(`twin-${n}`, n);
  await env.KV.put("last", n);
  await new Promise((resolve) => setTimeout(resolve, 5));
  await env.KV.put(`one-${n}`, n);
}
"""


@pytest.mark.slow
def test_what_an_accepted_run_puts_is_there_after_a_kill(own_engine: Callable[..., Engine]) -> None:
    """Of each run everything; it was killed before, in the middle of, or after its commit."""
    engine = own_engine()
    engine.deploy("kv-kept", SOURCE)
    path = "/v1/functions/kv-kept/invoke"

    for n in range(RUNS):
        answer = engine.client.post(path, json={"n": n}, headers={"Prefer": "respond-async"})
        assert answer.status_code == 202
        if n % 10 == 9:
            engine.kill()
            engine.start()
    engine.settled()

    def kept(prefix: str) -> set[str]:
        page = engine.ok("GET", "/v1/kv/default", params={"prefix": prefix, "limit": 200})
        return {one["key"].removeprefix(prefix) for one in page["items"]}

    every = {str(n) for n in range(RUNS)}
    assert kept("one-") == kept("twin-") == every
    assert str(engine.ok("GET", "/v1/kv/default/last")) in every
    assert {run["status"] for run in engine.executions(function="kv-kept")} == {"succeeded"}
