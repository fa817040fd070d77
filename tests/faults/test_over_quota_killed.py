"""The server is killed while runs wait for CPU time: for room in cells, and for a budget."""

from collections import Counter
from collections.abc import Callable

from tests.conftest import Engine

WRITES = 40
SPIN = """export default { async job(loops) { let x = 0; while (x < loops) x++; return x; } }"""
ON_WRITE = """export default { async afterStore(event, env) {
  const { key, value } = event.data.values[0];
  await env.KV.put(`${key}-${value}`, event.id);
} }"""
LOOPS = 200_000_000  # more than the budget


def test_runs_that_wait_for_a_budget_outlive_the_server(
    own_engine: Callable[..., Engine],
) -> None:
    """Every write was accepted: its run happens once, when there is CPU time for it again."""
    engine = own_engine(project_cpu_seconds_per_month="0.05", project_concurrency="4")
    device = engine.device("thermometer")
    engine.deploy("spin", SPIN, limits={"cpu_ms": 2_000, "wall_ms": 20_000})
    engine.deploy("keep", ON_WRITE, limits={"cpu_ms": 1_000, "wall_ms": 20_000})
    engine.ok("POST", "/v1/triggers", {"function": "keep", "product": "thermometer"})
    engine.until(lambda: engine.invoke("spin", LOOPS).status_code == 429)

    for number in range(WRITES):
        values = [{"key": "temp", "value": number}]
        engine.ok("POST", f"/v1/devices/{device['id']}/values", {"values": values})
    waiting = engine.executions(function="keep")
    engine.kill()
    engine.start()
    project = engine.ok("GET", "/v1/projects/current")
    allowances = {"cpu_seconds_per_month": 1_000}
    engine.ok("PATCH", f"/v1/projects/{project['id']}", {"allowances": allowances})
    engine.settled()

    ran = engine.executions(function="keep")
    stored = engine.ok("GET", "/v1/kv/default", params={"limit": 200})["items"]
    assert [run["status"] for run in waiting].count("queued") == WRITES
    assert {run["waits_for"] for run in waiting} == {"over_quota"}
    assert Counter(run["status"] for run in ran) == {"succeeded": WRITES}
    assert sorted(run["id"] for run in ran) == sorted(run["id"] for run in waiting)
    assert {item["key"] for item in stored} == {f"temp-{number}" for number in range(WRITES)}
