"""SIGTERM under load: what is in flight is answered, what was promised stays, nothing hangs."""

# ruff: noqa: T201 - seeds and the counts of what was injected are printed

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from examples.slack_stand_in import SlackStandIn
from tests.conftest import Engine
from tests.faults.audit import audit, settled
from tests.faults.load import Load, furnish

STOP_S = 15
IN_FLIGHT = 8
SLOW_MS = 1_500
ENDLESS_MS = 50_000  # within the wall time of a job, and far past the engine's patience
SLEEPER = """
export async function job(params) {
  await new Promise((resolve) => setTimeout(resolve, params.ms));
}
"""


@pytest.mark.slow
def test_stop_under_load_is_orderly(own_engine: Callable[..., Engine]) -> None:
    """Exit status 0, in time; requests in flight get their answers; the next start is clean."""
    with SlackStandIn() as slack, ThreadPoolExecutor(IN_FLIGHT) as callers:
        engine = own_engine()
        load = Load(furnish(engine, slack.webhook_url))

        def call(at: int) -> httpx.Response:
            return engine.client.post("/v1/functions/echo/invoke", json={"item": at, "ms": SLOW_MS})

        with load.running(write=2, gateway=1, job=2, call=1):
            load.rest(0.5)
            in_flight = [callers.submit(call, at) for at in range(IN_FLIGHT)]
            load.rest(0.5)
            load.up.clear()
            started = time.monotonic()
            engine.process.terminate()
            exit_code = engine.process.wait(timeout=STOP_S)
            stop_s = time.monotonic() - started
            engine.process.stdout.close()
            answers = [future.result() for future in in_flight]
            engine.start()
            load.up.set()
            load.rest(0.3)
        settled(engine)

        print(f"stopped in {stop_s:.1f} s with exit code {exit_code}; {load.promises.statuses}")
        assert exit_code == 0
        assert [answer.status_code for answer in answers] == [200] * IN_FLIGHT
        assert {body["code"] for body in load.promises.bodies} <= {"draining"}
        assert engine.stderr().count('"level": "error"') == 0
        received = audit(engine, load.promises, slack)
        assert set(received.values()) == {1}


@pytest.mark.slow
def test_stop_does_not_wait_for_long_runs(own_engine: Callable[..., Engine]) -> None:
    """The caller of a run that outlasts it is told so; a queued run goes on at the next start."""
    with ThreadPoolExecutor(1) as callers:
        engine = own_engine()
        engine.deploy("sleeper", SLEEPER)
        path, headers = "/v1/functions/sleeper/invoke", {"Prefer": "respond-async"}

        queued = engine.ok("POST", path, {"ms": ENDLESS_MS}, headers=headers)
        engine.until(lambda: engine.executions(status="running"))
        call = callers.submit(engine.client.post, path, json={"ms": ENDLESS_MS})
        time.sleep(0.3)  # a run of a call shows nowhere until it has ended
        started = time.monotonic()
        engine.process.terminate()
        exit_code = engine.process.wait(timeout=2 * STOP_S)
        stop_s = time.monotonic() - started
        answer = call.result()
        engine.process.stdout.close()
        engine.start()

        print(f"stopped in {stop_s:.1f} s; the call was answered with {answer.status_code}")
        assert (exit_code, stop_s < STOP_S) == (0, True)
        assert answer.json()["code"] in {"cancelled", "draining"}
        again = engine.ok("GET", f"/v1/executions/{queued['execution_id']}")
        assert again["status"] in {"queued", "running"}


@pytest.mark.slow
def test_stop_gives_messages_of_a_batch_back(own_engine: Callable[..., Engine]) -> None:
    """A batch that is at work when the engine stops has not ended: its messages come again."""
    engine = own_engine()
    source = """export default { async queue(batch, env) {
      const first = await env.KV.get("begun");
      if (!first) await new Promise((resolve) => setTimeout(resolve, 30_000));
      for (const message of batch.messages) await env.KV.put(`m${message.body}`, 1);
    } }"""
    batches = {"max_batch_size": 3, "max_batch_timeout": 1}
    engine.deploy("messages", source, queue=batches, limits={"wall_ms": 40_000})
    jobs = [
        engine.ok("POST", "/v1/jobs", {"function": "messages", "payload": number})["id"]
        for number in range(3)
    ]
    engine.until(lambda: engine.ok("GET", f"/v1/jobs/{jobs[0]}")["status"] == "running")

    engine.ok("PUT", "/v1/kv/default/begun", 1)
    engine.process.terminate()
    engine.process.wait(timeout=30)
    engine.process.stdout.close()
    engine.start()
    ended = [engine.ok("GET", f"/v1/jobs/{job}?wait=20") for job in jobs]

    assert [(job["status"], job["attempts"]) for job in ended] == [("succeeded", 1)] * 3
    assert [engine.ok("GET", f"/v1/kv/default/m{number}") for number in range(3)] == [1] * 3
