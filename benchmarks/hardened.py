"""Part (k) of `make bench`: what it costs a project to be hardened.

Two projects in one engine, standard and hardened, run the same: the functions of the demo, what
they do in bulk, and loops that a compiler would shine at. Interleaved, either being first in turn;
medians of the runs' own CPU time, as the engine records it.
"""

import base64
import csv
import itertools
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import httpx
import wasmtime

if TYPE_CHECKING:
    from run import Bench

EXAMPLES = Path(__file__).parents[1] / "examples"
READINGS = 300
ROUNDS = 15
KINDS = ("standard", "hardened")
CALM = {"cpu_ms": 20_000, "wall_ms": 60_000}
LOOP = """export default { job({ count }) {
  let sum = 0; for (let i = 0; i < count; i++) sum = (sum * 31 + i) | 0; return sum;
} };"""
TEXT = """export default { job({ count }) {
  const rows = []; for (let i = 0; i < count; i++) rows.push({ id: i, at: `2010-01-${i % 28}` });
  const text = JSON.stringify(rows);
  return JSON.parse(text).filter((row) => /-1[0-9]$/.test(row.at)).length;
} };"""
WASM_LOOP = """
(module (memory (export "memory") 1)
  (data (i32.const 0) "1")
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "handle") (param i32 i32) (result i64)
    (local $i i32) (local $sum i32)
    (loop $next
      (local.set $sum (i32.add (i32.mul (local.get $sum) (i32.const 31)) (local.get $i)))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $i) (i32.const 1000000))))
    (i32.store8 (i32.const 2048) (i32.add (i32.const 48)
      (i32.and (local.get $sum) (i32.const 1))))
    (i64.const 0x80000000001)))
"""


class Tenant:
    """One project, by the admin's key."""

    def __init__(self, bench: "Bench", isolation: str) -> None:
        made = bench.post("/v1/projects", {"name": f"cost {isolation}", "isolation": isolation})
        self._bench = bench
        self._project = {"X-Project": made["id"]}
        self.post("/v1/products", {"name": "weather"})
        self.device: str = self.post("/v1/devices", {"product": "weather", "name": "one"})["id"]
        credentials = {"webhook_url": "http://127.0.0.1:9099/services/T/B/X"}
        hook = {"kind": "slack", "credentials": credentials}
        answer = bench.client.put("/v1/connections/ALERTS", json=hook, headers=self._project)
        answer.raise_for_status()
        for file in ("daily_stats.js", "alarms.ts", "nightly_report.js"):
            name = file.partition(".")[0]
            files = {file: (EXAMPLES / file).read_text()}
            self.post("/v1/functions", {"name": name, "files": files, "main": file})
        for name in ("daily_stats", "alarms"):
            trigger = {"function": name, "product": "weather", "keys": ["temp"]}
            self.post("/v1/triggers", trigger)
        for name, source in (("loop", LOOP), ("text", TEXT)):
            self.post("/v1/functions", {"name": name, "source": source, "limits": CALM})
        for name, module in (
            ("wasm_loop", WASM_LOOP),
            ("threshold", (EXAMPLES / "wasm/wat/threshold.wat").read_text()),
        ):
            wasm = base64.b64encode(bytes(wasmtime.wat2wasm(module))).decode()
            body = {"name": name, "wasm": wasm, "handlers": ["job"], "limits": CALM}
            self.post("/v1/functions", body)

    def post(self, path: str, body: Any) -> Any:
        return self._bench.post(path, body, **self._project)

    def invoke(self, name: str, params: Any) -> None:
        self.post(f"/v1/functions/{name}/invoke", params)

    def write(self, reading: dict[str, Any]) -> None:
        self.post(f"/v1/devices/{self.device}/values", {"values": [reading]})

    def runs(self, name: str) -> list[dict[str, Any]]:
        """Return the latest runs of a function; medians pass over the first of its isolate."""
        query: dict[str, str | int] = {"function": name, "status": "succeeded", "limit": 200}
        found: httpx.Response = self._bench.client.get(
            "/v1/executions", params=query, headers=self._project
        )
        return list(found.json()["items"])


def hardened_cost(bench: "Bench") -> None:
    """Add the medians of both kinds of project, and how many times the one the other is."""
    tenants = {isolation: Tenant(bench, isolation) for isolation in KINDS}
    orders = itertools.cycle((tuple(tenants.values()), tuple(tenants.values())[::-1]))
    for reading in _readings():
        for tenant in next(orders):
            tenant.write(reading)
    bench.until_run()
    report = {"from": "2010-01-01", "days": 10}
    asked: dict[str, Any] = {
        "nightly_report": report,
        "loop": {"count": 1_000_000},
        "text": {"count": 2_000},
        "wasm_loop": 0,
        "threshold": {"value": 31},
    }
    for _, (name, params) in itertools.product(range(ROUNDS), asked.items()):
        for tenant in next(orders):
            of_its_own = {"device": tenant.device} if name == "nightly_report" else {}
            tenant.invoke(name, {**params, **of_its_own} if isinstance(params, dict) else params)
    for name, what in {
        "daily_stats": "demo: daily_stats.js, of a write",
        "alarms": "demo: alarms.ts, of a write",
        "nightly_report": "demo: nightly_report.js, of ten days",
        "loop": "JavaScript: a loop of a million steps",
        "text": "JavaScript: 2,000 rows as JSON and back, with a pattern",
        "threshold": "WebAssembly: threshold.wat",
        "wasm_loop": "WebAssembly: a loop of a million steps",
    }.items():
        medians = [_median_cpu_ms(tenants[isolation], name) for isolation in KINDS]
        for isolation, found in zip(KINDS, medians, strict=True):
            bench.add(f"{what}: {isolation}", found, "ms CPU")
        bench.add("... hardened to standard", medians[1] / medians[0], "times")


def _readings() -> Iterator[dict[str, Any]]:
    with (EXAMPLES / "seattle-temps.csv").open() as file:
        for row in itertools.islice(csv.DictReader(file), READINGS):
            at = row["date"].replace("/", "-").replace(" ", "T") + ":00.000Z"
            yield {"key": "temp", "value": float(row["temp"]), "datetime": at}


def _median_cpu_ms(tenant: Tenant, name: str) -> float:
    return float(median(run["cpu_ms"] for run in tenant.runs(name)))
