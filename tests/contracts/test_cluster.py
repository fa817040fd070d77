"""Two API nodes and two workers on one PostgreSQL and one Redis: one engine to a client."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.faults.cluster import ADMIN_KEY, LEASE_S, Cluster

pytestmark = pytest.mark.slow
HEADERS = {"authorization": f"Bearer {ADMIN_KEY}"}
SLEEPER = """export default { async job(payload, env) {
  console.log("begun");
  await new Promise((resolve) => setTimeout(resolve, payload.ms));
  await env.KV.put(payload.key, 1);
} }"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(apis_count=2, workers_count=2) as running:
        yield running


@pytest.fixture(scope="module")
def clients(cluster: Cluster) -> Iterator[list[httpx.Client]]:
    """A client of each API node."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(httpx.Client(base_url=url, headers=HEADERS, timeout=60))
            for url in cluster.urls()
        ]


def ok(client: httpx.Client, method: str, path: str, body: Any = None, **headers: str) -> Any:
    response = client.request(method, path, json=body, headers=headers)
    assert response.is_success, (response.status_code, response.text)
    return response.json() if response.content else None


def deploy(client: httpx.Client, name: str, source: str) -> None:
    ok(client, "POST", "/v1/functions", {"name": name, "source": source})


def until(question: Callable[[], Any], seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < deadline, f"not so within {seconds} s"
        time.sleep(0.02)  # other processes tell nobody
    return answer


def job_in(client: httpx.Client, job_id: str, *statuses: str) -> Any:
    path = f"/v1/jobs/{job_id}"
    return until(lambda: (job := ok(client, "GET", path))["status"] in statuses and job)


def test_what_one_node_is_told_the_other_knows_at_once(clients: list[httpx.Client]) -> None:
    """A function, a new version of it and an API key, each asked for right after the answer."""
    one, other = clients

    for number in range(5):
        deploy(one, f"fresh{number}", f"function main(p, done) {{ done(null, {number}); }}")
        assert ok(other, "POST", f"/v1/functions/fresh{number}/invoke", {}) == number
        key = ok(other, "POST", "/v1/api-keys", {"name": f"k{number}", "scopes": ["operate"]})
        bearer = {"authorization": f"Bearer {key['key']}"}
        assert ok(one, "POST", f"/v1/functions/fresh{number}/invoke", {}, **bearer) == number


def test_a_write_runs_the_newest_version_on_whatever_worker(clients: list[httpx.Client]) -> None:
    """A claim brings what it depends on: no run starts with what was live before its event."""
    one, other = clients
    ok(one, "POST", "/v1/products", {"name": "newest"})
    device = ok(one, "POST", "/v1/devices", {"product": "newest", "name": "d"})
    source = "export default { async afterStore(e, env) { await env.KV.put('newest', %d); } }"
    deploy(one, "newest", source % 0)
    ok(one, "POST", "/v1/triggers", {"function": "newest", "product": "newest"})

    for number in range(1, 6):
        version = {"source": source % number}
        ok(other, "POST", "/v1/functions/newest/versions?deploy=true", version)
        path = f"/v1/devices/{device['id']}/values"
        written = ok(one, "POST", path, {"values": [{"key": "t", "value": number}]})
        path = f"/v1/executions/{written['executions'][0]}"
        ended = until(
            lambda path=path: (run := ok(one, "GET", path))["status"] == "succeeded" and run
        )
        assert ended["version"] == number + 1
        assert ok(other, "GET", "/v1/kv/default/newest") == number


def test_a_tail_shows_what_runs_on_workers(cluster: Cluster, clients: list[httpx.Client]) -> None:
    """Lines and report cross the nodes; the watcher sits on either of them."""
    deploy(clients[0], "tailed", "export default { async job(p) { console.log('line ' + p.n) } }")
    for client in clients:
        lines: list[dict[str, Any]] = []

        def watch(client: httpx.Client = client, lines: list[dict[str, Any]] = lines) -> None:
            with client.stream("GET", "/v1/functions/tailed/tail", timeout=30) as stream:
                for text in stream.iter_lines():
                    if text.startswith("data:"):
                        lines.append(json.loads(text[5:]))
                        if "status" in lines[-1] and any("msg" in line for line in lines):
                            return

        watching = threading.Thread(target=watch)
        watching.start()
        deadline = time.monotonic() + 20
        while watching.is_alive() and time.monotonic() < deadline:
            ok(clients[0], "POST", "/v1/jobs", {"function": "tailed", "payload": {"n": 7}})
            watching.join(0.3)
        assert not watching.is_alive()
        assert any(line.get("msg") == "line 7" for line in lines)


def test_a_job_that_runs_on_a_worker_is_cancelled_by_any_node(
    clients: list[httpx.Client],
) -> None:
    """Its cell is told, its effects are void, and the place is free for the next run."""
    one, other = clients
    deploy(one, "sleeper", SLEEPER)
    asked = {"function": "sleeper", "payload": {"ms": 3000, "key": "cancelled"}}
    job = ok(one, "POST", "/v1/jobs", asked)
    job_in(one, job["id"], "running")

    ok(other, "DELETE", f"/v1/jobs/{job['id']}")

    assert ok(one, "GET", f"/v1/jobs/{job['id']}")["status"] == "cancelled"
    time.sleep(3.5)  # longer than the run would have taken: now its effect would be there
    assert one.get("/v1/kv/default/cancelled").status_code == 404
    runs = ok(one, "GET", "/v1/executions?function=sleeper&limit=10")["items"]
    assert [run["status"] for run in runs] == ["cancelled"]


def test_a_worker_that_is_told_to_stop_gives_its_work_away(
    cluster: Cluster, clients: list[httpx.Client]
) -> None:
    """What has begun ends there, what has not runs elsewhere at once: nobody waits for a lease."""
    client = clients[0]
    deploy(client, "sleeper2", SLEEPER)
    jobs = [
        ok(
            client,
            "POST",
            "/v1/jobs",
            {"function": "sleeper2", "payload": {"ms": 800, "key": f"s{n}"}},
        )
        for n in range(20)
    ]
    until(lambda: ok(client, "GET", "/v1/executions?function=sleeper2&status=running")["items"])
    worker = cluster.workers[0]

    begun = time.monotonic()
    worker.terminate()
    worker.wait_until_ended()
    ended = [job_in(client, job["id"], "succeeded", "failed", "dead_lettered") for job in jobs]
    worker.start()
    worker.wait_until_up()

    assert {job["status"] for job in ended} == {"succeeded"}
    assert {job["attempts"] for job in ended} == {1}
    assert time.monotonic() - begun < 20
    assert all(ok(client, "GET", f"/v1/kv/default/s{n}") == 1 for n in range(20))


def test_without_redis_jobs_run_all_the_same() -> None:
    """PostgreSQL alone: the nodes run what is queued themselves, and take over from a dead one."""
    with Cluster(apis_count=2, workers_count=0, redis=False) as cluster:
        one, other = (
            httpx.Client(base_url=url, headers=HEADERS, timeout=60) for url in cluster.urls()
        )
        deploy(one, "alone", SLEEPER)
        late = {"delay_seconds": 1, "payload": {"ms": 0, "key": "late"}}
        soon = {"payload": {"ms": 60_000, "key": "soon"}, "max_attempts": 1}
        jobs = [
            ok(one, "POST", "/v1/jobs", {"function": "alone", **asked}) for asked in (late, soon)
        ]
        job_in(other, jobs[1]["id"], "running")

        cluster.nodes[0].kill()
        job_in(other, jobs[0]["id"], "succeeded")
        taken_over = until(
            lambda: [
                row for row in cluster.rows("SELECT node_id, takeovers FROM run_queue") if row[1]
            ],
            seconds=4 * LEASE_S,
        )
        assert taken_over
        assert ok(other, "GET", f"/v1/jobs/{jobs[1]['id']}")["status"] in {"queued", "running"}
        one.close()
        other.close()
