"""`make bench`: the engine's speed and memory on this machine, in one run, beside its goals.

Starts an engine with its embedded store in a temporary directory and loads it over HTTP from a
second process. `--json` prints the figures for programs; `--only a,b` runs a part.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil
from hardened import hardened_cost
from isolation import lockdown_cost
from neighbours import neighbours
from rich.console import Console
from rich.table import Table
from throughput import due_schedules, events, jobs
from webassembly import webassembly

HERE = Path(__file__).parent
KEY = "cck_benchmark-admin-key"
HEADERS = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
SECONDS = 5.0
ROUNDS = 3
PLUS = "function main(params, callback) { callback(null, { sum: params.a + params.b }); }"
PLUS_MODULE = "export default { async job(event) { return { sum: event.a + event.b }; } };"
TRIGGER = """
function trigger(params, callback) {
  var sum = 0;
  for (var i = 0; i < params.values.length; i++) sum += params.values[i].value;
  callback(null, sum);
}
"""
HOST_CALLS = """
function main(params, callback) {
  var left = params.count;
  (function next() {
    if (left-- === 0) return callback(null);
    thethingsAPI.thingWrite(params.token, { values: [{ key: "count", value: left }] }, next);
  })();
}
"""


@dataclass
class Line:
    """One figure and its goal."""

    what: str
    figure: float
    unit: str
    goal: float | None = None
    most: bool = False  # the goal is a ceiling

    @property
    def met(self) -> bool | None:
        if self.goal is None:
            return None
        return self.figure <= self.goal if self.most else self.figure >= self.goal


class Bench:
    """An engine to measure."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="cloudcode-bench-")
        environment = {
            "PATH": os.environ["PATH"],
            "CLOUDCODE_ADMIN_KEY": KEY,
            # Counted, as ever, and never reached: a handful of devices stand for all.
            "CLOUDCODE_PROJECT_DEVICE_REQUESTS_PER_MINUTE": "100000000",
        }
        arguments = ["serve", "--port", "0", "--data-dir", f"{self._folder.name}/data"]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "engine", *arguments],
            stdout=subprocess.PIPE,
            env=environment,
        )
        self.url = self.process.stdout.readline().decode().split()[-1]
        self.client = httpx.Client(base_url=self.url, headers=HEADERS, timeout=120)
        self.lines: list[Line] = []

    def close(self) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait(30)
        self._folder.cleanup()

    def post(self, path: str, body: Any, **headers: str) -> Any:
        response = self.client.post(path, json=body, headers=headers)
        response.raise_for_status()
        return response.json()

    def deploy(self, name: str, source: str, **headers: str) -> None:
        self.post("/v1/functions", {"name": name, "source": source}, **headers)

    def load(
        self,
        requests: list[list[Any]],
        connections: int,
        seconds: float = SECONDS,
        url: str | None = None,
    ) -> dict[str, Any]:
        job = {
            "url": url or self.url,
            "requests": requests,
            "connections": connections,
            "seconds": seconds,
        }
        done = subprocess.run(
            [sys.executable, str(HERE / "load.py")],
            input=json.dumps(job).encode(),
            capture_output=True,
            check=True,
        )
        result: dict[str, Any] = json.loads(done.stdout)
        if result["errors"]:
            raise SystemExit(f"{result['errors']} errors, the first: {result['first_error']}")
        return result

    def add(
        self, what: str, figure: float, unit: str, goal: float | None = None, *, most: bool = False
    ) -> None:
        self.lines.append(Line(what, figure, unit, goal, most))

    def waiting(self) -> int:
        return len(self.client.get("/v1/executions?status=queued&limit=1").json()["items"])

    def until_run(self) -> None:
        """Wait until every queued run has its record."""
        while self.waiting():
            time.sleep(0.01)

    def invoke(self) -> None:
        """(a)."""
        for label, name, source in (
            ("", "plus", PLUS),
            (", async module", "plus_module", PLUS_MODULE),
        ):
            self.deploy(name, source)
            request = ["POST", f"/v1/functions/{name}/invoke", HEADERS, '{"a":1,"b":2}']
            self.load([request], 32, 1.0)
            many = [self.load([request], 32) for _ in range(ROUNDS)]
            one = [self.load([request], 1, 2.0) for _ in range(ROUNDS)]
            per_second = median(result["per_second"] for result in many)
            self.add(f"(a) invoke{label}, 32 connections", per_second, "/s", 14_000)
            p50 = median(result["p50_ms"] for result in one)
            self.add(f"(a) invoke{label}, 1 connection, p50", p50, "ms", 0.45, most=True)
            p99 = median(result["p99_ms"] for result in one)
            self.add(f"(a) invoke{label}, 1 connection, p99", p99, "ms")

    def writes(self) -> None:
        """(b)."""
        self.deploy("sum", TRIGGER)
        self.post("/v1/products", {"name": "meter"})
        tokens = [
            self.post("/v1/devices", {"product": "meter", "name": f"meter {n}"})["token"]
            for n in range(100)
        ]
        self.post("/v1/triggers", {"function": "sum", "product": "meter", "keys": ["flow"]})
        single = json.dumps({"values": [{"key": "flow", "value": 100.59}]})
        hundred = json.dumps({"values": [{"key": "flow", "value": 100 + n} for n in range(100)]})
        gateway = json.dumps(
            [{"token": t, "values": [{"key": "flow", "value": 100.59}]} for t in tokens]
        )
        plain = {"content-type": "application/json"}
        singles = [["POST", f"/v2/things/{token}", plain, single] for token in tokens]
        hundreds = [["POST", f"/v2/things/{token}", plain, hundred] for token in tokens]
        gateways = [["POST", "/v1/writes", HEADERS, gateway]]
        self.load(singles, 32, 1.0)
        for what, requests, connections, factor, unit, goal in (
            ("single-value writes", singles, 32, 1, "writes/s", 4_000),
            ("writes of 100 values", hundreds, 32, 100, "values/s", 50_000),
            ("gateway requests of 100 writes", gateways, 8, 100, "runs/s", 15_000),
        ):
            rates, accepted = [], []
            for _ in range(ROUNDS):
                self.until_run()
                began = time.perf_counter()
                result = self.load(requests, connections)
                self.until_run()
                rates.append(result["count"] * factor / (time.perf_counter() - began))
                accepted.append(result["per_second"] * factor)
            self.add(f"(b) {what}, accepted and run", median(rates), unit, goal)
            self.add(f"(b) {what}, accepted", median(accepted), unit)

    def first_calls(self) -> None:
        """(c)."""
        uploads, firsts = [], []
        for n in range(20):
            time.sleep(0.2)  # a warm node: its pool is full
            began = time.perf_counter()
            self.deploy(f"fresh_{n}", PLUS_MODULE)
            uploaded = time.perf_counter()
            self.post(f"/v1/functions/fresh_{n}/invoke", {"a": 1, "b": 2})
            ended = time.perf_counter()
            uploads.append((ended - began) * 1000)
            firsts.append((ended - uploaded) * 1000)
        self.add("(c) upload to first answer, p50", median(uploads), "ms", 40, most=True)
        self.add("(c) first call of a new function, p50", median(firsts), "ms", 8, most=True)

    def memory(self) -> None:
        """(d)."""

        def cells() -> dict[int, int]:
            zygote = next(iter(psutil.Process(self.process.pid).children()))
            return {cell.pid: cell.memory_full_info().uss for cell in zygote.children()}

        project = self.post("/v1/projects", {"name": "memory"})
        key = {"authorization": f"Bearer {project['key']}"}
        idle = cells()
        self.deploy("first", PLUS, **key)
        self.post("/v1/functions/first/invoke", {"a": 1, "b": 2}, **key)
        time.sleep(0.5)
        # The project's cell was one of the warm ones: it is the one that grew.
        now = cells()
        cell = max(
            (pid for pid in now if pid in idle), key=lambda pid: now[pid] - idle[pid], default=None
        )
        before = now[cell]
        engine_before = psutil.Process(self.process.pid).memory_full_info().uss
        count = 100
        for n in range(count):
            self.deploy(f"idle_{n}", PLUS, **key)
            self.post(f"/v1/functions/idle_{n}/invoke", {"a": 1, "b": 2}, **key)
        time.sleep(0.5)
        engine_after = psutil.Process(self.process.pid).memory_full_info().uss
        per_function = (cells()[cell] - before + engine_after - engine_before) / count / 1e6
        self.add("(d) memory per idle function", per_function, "MB", 1.1, most=True)
        self.add("(d) memory per project cell", before / 1e6, "MB", 25, most=True)

    def host_calls(self) -> None:
        """(e)."""
        self.deploy("writes", HOST_CALLS)
        self.post("/v1/products", {"name": "counter"})
        device = self.post("/v1/devices", {"product": "counter", "name": "one"})
        params = {"params": {"token": device["token"], "count": 200}}
        times = []
        for _ in range(15):
            response = self.client.post(
                f"/v2/things/{device['token']}/code/functions/writes", json=params
            )
            response.raise_for_status()
            run = response.headers["server-timing"].split("run;dur=")[1].split(",")[0]
            times.append(float(run) / 200)
        self.add("(e) host call, round trip, p50", median(times), "ms", 0.4, most=True)

    def reference(self) -> None:
        """How fast this machine is right now: figures of two runs compare only beside it."""
        times = []
        for _ in range(5):
            began = time.perf_counter()
            total = 0
            for n in range(2_000_000):
                total += n
            times.append((time.perf_counter() - began) * 1000)
        self.add("machine: 2 million additions in Python", median(times), "ms")


PARTS = {
    "a": Bench.invoke,
    "b": Bench.writes,
    "c": Bench.first_calls,
    "d": Bench.memory,
    "e": Bench.host_calls,
    "f": webassembly,
    "g": jobs,
    "h": events,
    "i": due_schedules,
    "j": lockdown_cost,
    "k": hardened_cost,
    "m": neighbours,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON on stdout")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, e.g. a,c")
    arguments = parser.parse_args()
    screen = Console(stderr=arguments.json)
    bench = Bench()
    try:
        bench.reference()
        for part in arguments.only.split(","):
            screen.print(f"measuring ({part}) ...")
            PARTS[part](bench)
        bench.reference()
    finally:
        bench.close()
    table = Table(title=f"cloudcode-engine on {os.cpu_count()} cores, load generator included")
    for heading in ("what", "measured", "goal", ""):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for line in bench.lines:
        sign = "<=" if line.most else ">="
        goal = "" if line.goal is None else f"{sign} {line.goal:,g} {line.unit}"
        verdict = {None: "", True: "ok", False: "missed"}[line.met]
        table.add_row(line.what, f"{_round(line.figure)} {line.unit}", goal, verdict)
    screen.print(table)
    if arguments.json:
        print(json.dumps([line.__dict__ | {"met": line.met} for line in bench.lines]))


def _round(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.2f}"


if __name__ == "__main__":
    main()
