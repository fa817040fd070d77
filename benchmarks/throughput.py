"""Parts (g), (h) and (i) of `make bench`: jobs, events and schedules over several processes.

Jobs beside plain RQ, in the same run and with the same servers: its SimpleWorker and its forking
Worker, as operators of Redis would otherwise use them. Rates are from the first request to the
last record. What (i) measures is in `schedules.py`.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import redis
from rq import Queue
from rq.serializers import JSONSerializer

sys.path.insert(0, str(Path(__file__).parents[1]))  # the cluster is shared with the tests

from tests.faults.cluster import HEADERS, Cluster

if TYPE_CHECKING:
    from run import Bench

ROUNDS = 3
JOBS = 10_000
JOBS_A_CALL = 500
RQ_JOBS = {"SimpleWorker": 1_000, "Worker": 150}  # the second forks for each
WRITES_S = 5.0
DEVICES = 100
WAIT_S_MAX = 300.0
LOOK_S = 0.01
NOOP = "export async function job() {}"
TRIGGER = "export async function afterStore(event) { return event.data.values.length; }"
WORK_OFF = """
import sys
from redis import Redis
from rq import {worker}
from rq.serializers import JSONSerializer
connection = Redis.from_url(sys.argv[1])
{worker}(["bench"], connection=connection, serializer=JSONSerializer).work(
    burst=True, logging_level="ERROR")
"""


def jobs(bench: "Bench") -> None:
    """(g)."""
    rates = {}
    for workers_count in (1, 2):
        with Cluster(apis_count=1, workers_count=workers_count, lease_s=15) as cluster:
            cluster.ok("POST", "/v1/functions", {"name": "noop", "source": NOOP})
            _run_jobs(cluster, JOBS_A_CALL)
            rates[workers_count] = median(_run_jobs(cluster, JOBS) for _ in range(ROUNDS))
            if workers_count == 1:
                simple, forking = _plain_rq(cluster.redis.url)
    bench.add("(g) no-op jobs, RQ's forking Worker", forking, "/s")
    bench.add("(g) no-op jobs, RQ's SimpleWorker", simple, "/s")
    bench.add("(g) no-op jobs on PostgreSQL and Redis, 1 worker", rates[1], "/s")
    bench.add("(g) ... beside SimpleWorker", rates[1] / simple, "x", 10)
    bench.add("(g) no-op jobs on PostgreSQL and Redis, 2 workers", rates[2], "/s")
    bench.add("(g) ... beside 1 worker", rates[2] / rates[1], "x")


def events(bench: "Bench") -> None:
    """(h)."""
    bench.deploy("count", TRIGGER)
    mine = {name: bench.client.headers[name] for name in HEADERS}
    _measure_events(bench, "SQLite, one process", bench.post, bench.url, mine, bench.until_run)
    with Cluster(apis_count=1, workers_count=0, lease_s=15, redis=False) as cluster:
        _measure_cluster(bench, "PostgreSQL, one node", cluster)
    with Cluster(apis_count=1, workers_count=1, lease_s=15) as cluster:
        _measure_cluster(bench, "PostgreSQL and Redis, 1 worker", cluster)


def due_schedules(bench: "Bench") -> None:
    """(i)."""
    rounds = [_measure_schedules("wall") for _ in range(ROUNDS)]
    through = _measure_schedules("manual")
    for name, shown in (("sqlite", "SQLite"), ("postgresql", "PostgreSQL")):
        figures, changes = [found[name] for found in rounds], through[name]["changes"]
        wrong = [of for of in (*figures, *changes) if of.get("twice") or of.get("missed")]
        if wrong:
            raise SystemExit(f"not each schedule fired once: {wrong[0]}")
        lag_s = median(found["lag_p99_s"] for found in figures)
        what = f"(i) {figures[0]['fires']:,} schedules due at once, {shown}, lag p99"
        bench.add(what, lag_s, "s", 2, most=True)
        lag_s = max(found["lag_p99_s"] for found in changes)
        what = f"(i) ... through the clock changes of 3 zones, {shown}, worst lag p99"
        bench.add(what, lag_s, "s", 2, most=True)


def _measure_schedules(clock: str) -> dict[str, Any]:
    program = Path(__file__).with_name("schedules.py")
    arguments = [sys.executable, str(program), "--json", "--clock", clock]
    found: dict[str, Any] = json.loads(subprocess.check_output(arguments))
    return found


def _measure_cluster(bench: "Bench", where: str, cluster: Cluster) -> None:
    cluster.ok("POST", "/v1/functions", {"name": "count", "source": TRIGGER})

    def post(path: str, body: Any) -> Any:
        return cluster.ok("POST", path, body)

    url = cluster.urls()[0]
    _measure_events(bench, where, post, url, HEADERS, lambda: _until_idle(cluster))


def _measure_events(
    bench: "Bench",
    where: str,
    post: Callable[[str, Any], Any],
    url: str,
    headers: dict[str, str],
    until_run: Callable[[], None],
) -> None:
    post("/v1/products", {"name": "counted"})
    tokens = [
        post("/v1/devices", {"product": "counted", "name": f"counted {number}"})["token"]
        for number in range(DEVICES)
    ]
    post("/v1/triggers", {"function": "count", "product": "counted"})
    value = {"values": [{"key": "flow", "value": 100.59}]}
    plain = {"content-type": "application/json"}
    singles = [["POST", f"/v2/things/{token}", plain, json.dumps(value)] for token in tokens]
    batch = json.dumps([{"token": token, **value} for token in tokens])
    for what, requests, connections, factor in (
        ("single writes", singles, 32, 1),
        ("batches of 100", [["POST", "/v1/writes", headers, batch]], 8, DEVICES),
    ):
        bench.load(requests, connections, 1.0, url=url)
        rates = []
        for _ in range(ROUNDS):
            until_run()
            began = time.perf_counter()
            result = bench.load(requests, connections, WRITES_S, url=url)
            until_run()
            rates.append(result["count"] * factor / (time.perf_counter() - began))
        bench.add(f"(h) {what}, {where}, accepted and run", median(rates), "runs/s")


def _run_jobs(cluster: Cluster, count: int) -> float:
    """Ask for so many jobs and wait until all of them have succeeded; return how many a second."""
    body = [{"function": "noop", "payload": None}] * JOBS_A_CALL
    ((before,),) = cluster.rows(_SUCCEEDED)
    began = time.perf_counter()
    for _ in range(count // JOBS_A_CALL):
        answer = cluster.ok("POST", "/v1/jobs", body)
        assert answer["accepted"] == JOBS_A_CALL, answer
    _until_idle(cluster)
    took_s = time.perf_counter() - began
    ((after,),) = cluster.rows(_SUCCEEDED)
    assert after - before == count, (before, after)
    return count / took_s


_SUCCEEDED = "SELECT count(*) FROM jobs WHERE status = 'succeeded'"


def _until_idle(cluster: Cluster) -> None:
    """Wait until no run is queued."""
    deadline = time.monotonic() + WAIT_S_MAX
    with cluster.connection() as connection:
        while connection.execute("SELECT 1 FROM run_queue LIMIT 1").fetchone() is not None:
            if time.monotonic() > deadline:
                raise SystemExit(f"runs are still queued after {WAIT_S_MAX} s")
            time.sleep(LOOK_S)  # another process is at work, and tells nobody


def _plain_rq(redis_url: str) -> tuple[float, float]:
    """Return the rates of RQ's workers without and with a fork for each job."""
    with _queue(redis_url) as queue:
        simple = median(_run_rq(queue, redis_url, "SimpleWorker") for _ in range(ROUNDS))
        forking = median(_run_rq(queue, redis_url, "Worker") for _ in range(ROUNDS))
    return simple, forking


@contextmanager
def _queue(redis_url: str) -> Iterator[Queue]:
    with redis.Redis.from_url(redis_url) as connection:
        yield Queue("bench", connection=connection, serializer=JSONSerializer)


def _run_rq(queue: Queue, redis_url: str, worker: str) -> float:
    """Enqueue jobs while a worker is at them, as above; its start does not count."""
    count = RQ_JOBS[worker]
    one = Queue.prepare_data("operator.neg", args=[1], result_ttl=500)
    began = time.perf_counter()
    for at in range(0, count, JOBS_A_CALL):
        queue.enqueue_many([one] * min(JOBS_A_CALL, count - at))
    put_s = time.perf_counter() - began
    process = subprocess.Popen(
        [sys.executable, "-c", WORK_OFF.format(worker=worker), redis_url],
        stdout=subprocess.DEVNULL,
    )
    while queue.count == count:
        time.sleep(LOOK_S)  # another process is at work, and tells nobody
    left, began = queue.count, time.perf_counter()
    while queue.count:
        time.sleep(LOOK_S)  # another process is at work, and tells nobody
    took_s = time.perf_counter() - began
    process.wait()
    return 1 / (put_s / count + took_s / left)
