"""The `queue` handler: messages that come together, and what it says of each of them."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import base64
import itertools
import json
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pytest

from tests.contracts.test_flow import end_of, ends_of, make, until
from tests.standins.control_plane import (  # noqa: F401 - fixtures
    Project,
    http,
    platform,
    project,
)
from tests.standins.wasm_toolchains import ROOT, c_module

pytestmark = pytest.mark.asyncio(loop_scope="module")

CALM = {"cpu_ms": 2_000, "wall_ms": 20_000}  # two cores are shared with whatever else runs
FULL = {"max_batch_size": 3, "max_batch_timeout": 20}  # it goes when there are three
AT_ONCE = {"max_batch_size": 1}
# Stores what it has got, and does with each message what its body says.
TELLS = """export default { async queue(batch, env, ctx) {
  const got = batch.messages.map(({ id, timestamp, body, attempts }) => ({
    id, body, attempts, timestamp: timestamp.toISOString(),
  }));
  console.warn(JSON.stringify({ queue: batch.queue, got }));
  await env.KV.put(ctx.executionId, got.length);
  for (const message of batch.messages) {
    for (const word of [message.body?.say ?? []].flat()) {
      if (word === "throw") throw new Error("no");
      if (word.endsWith("All")) batch[word]({ delaySeconds: 0 });
      else message[word]({ delaySeconds: message.body.delay ?? 0 });
    }
  }
} }"""
_numbers = itertools.count(1)


async def deploy(project: Project, queue: Any = None, source: str = TELLS, **fields: Any) -> str:
    name = f"queue-{next(_numbers)}"
    rules = {} if queue is None else {"queue": queue}
    await project.function(name, source, **{"limits": CALM} | rules | fields)
    return name


async def batches(project: Project, function: str) -> list[Any]:
    """Return the runs of a function, oldest first."""
    items = await project.develop.items("/v1/executions", function=function)
    return [run for run in reversed(items) if run["status"] not in {"queued", "running"}]


async def told(project: Project, run: Any) -> Any:
    lines = await project.develop.items(f"/v1/executions/{run['id']}/logs")
    return json.loads(lines[0]["msg"])


async def test_messages_come_together(project: Project) -> None:
    """One run has all of them, in their order; each job shows that run as its own."""
    name = await deploy(project, FULL)

    ids = await make(project, name, {"n": 1}, {"n": 2}, {"n": 3}, queue="mail")
    jobs = await ends_of(project, ids)

    (run,) = await batches(project, name)
    assert [(job["status"], job["attempts"]) for job in jobs] == [("succeeded", 1)] * 3
    assert {job["execution_id"] for job in jobs} == {run["id"]}
    for job_id in ids:
        (made,) = (await project.develop.ok("GET", f"/v1/jobs/{job_id}"))["executions"]
        assert (made["id"], made["status"], made["attempt"]) == (run["id"], "succeeded", 1)
    assert (run["status"], run["handler"]) == ("succeeded", "queue")
    batch = await told(project, run)
    assert batch["queue"] == "mail"
    assert [message["id"] for message in batch["got"]] == ids
    assert [message["body"] for message in batch["got"]] == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert {message["attempts"] for message in batch["got"]} == {1}
    assert datetime.fromisoformat(batch["got"][0]["timestamp"]).tzinfo is not None


async def test_the_first_message_does_not_wait_for_ever(project: Project) -> None:
    """After the timeout the batch goes, however small it is."""
    name = await deploy(project, {"max_batch_size": 100, "max_batch_timeout": 0.2})

    await ends_of(project, await make(project, name, 1, 2))

    (run,) = await batches(project, name)
    assert [message["body"] for message in (await told(project, run))["got"]] == [1, 2]
    assert run["queue_ms"] >= 150


async def test_queues_are_told_apart(project: Project) -> None:
    """A batch has messages of one queue."""
    name = await deploy(project, {"max_batch_timeout": 0.2})

    ids = await make(project, name, 1, queue="a") + await make(project, name, 2, queue="b")
    await ends_of(project, ids)

    found = [await told(project, run) for run in await batches(project, name)]
    assert sorted(one["queue"] for one in found) == ["a", "b"]


# What a message says -> how often it comes.
WORDS: Final[dict[str, tuple[list[str], list[str], int, int]]] = {
    "nothing": ([], [], 1, 1),
    "ack": (["ack"], [], 1, 1),
    "retry": (["retry"], [], 2, 1),
    "the first word counts": (["ack", "retry"], ["retry", "ack"], 1, 2),
    "all again": (["retryAll"], [], 2, 2),
    "all again but one": (["retryAll"], ["ack"], 2, 1),
    "all done but one": (["ackAll"], ["retry"], 1, 2),
    "the first word for all counts": (["ackAll", "retryAll"], [], 1, 1),
}


@pytest.mark.parametrize("case", WORDS)
async def test_each_message_has_its_own_end(project: Project, case: str) -> None:
    """What is to come again does, once more here; its own word counts before that for all."""
    first, second, firsts, seconds = WORDS[case]
    queue = {"max_batch_size": 2, "max_batch_timeout": 0.1, "max_retries": 1}
    name = await deploy(project, queue)

    jobs = await ends_of(project, await make(project, name, {"say": first}, {"say": second}))

    assert [job["attempts"] for job in jobs] == [firsts, seconds]
    # Who has asked to come again at the last attempt as well has failed.
    assert [job["status"] for job in jobs] == [
        "succeeded" if count == 1 else "dead_lettered" for count in (firsts, seconds)
    ]


async def test_a_message_that_comes_again_counts_its_attempts(project: Project) -> None:
    """With the same id; in the end it is a dead letter."""
    name = await deploy(project, AT_ONCE | {"max_retries": 2})

    (job_id,) = await make(project, name, {"say": "retry"})
    job = await end_of(project, job_id)

    runs = [await told(project, run) for run in await batches(project, name)]
    assert [(run["got"][0]["id"], run["got"][0]["attempts"]) for run in runs] == [
        (job_id, 1), (job_id, 2), (job_id, 3),
    ]  # fmt: skip
    assert (job["status"], job["attempts"]) == ("dead_lettered", 3)
    (letter,) = await project.develop.items("/v1/dead-letters")
    assert (letter["job_id"], letter["error"]["name"]) == (job_id, "Retry")


async def test_a_message_comes_again_when_it_says(project: Project) -> None:
    """Not when the version's retries would have it."""
    name = await deploy(project, AT_ONCE | {"max_retries": 2, "retry_delay": "1h"})

    (job_id,) = await make(project, name, {"say": "retry", "delay": 3_600})

    async def tried() -> Any:
        job = await project.develop.ok("GET", f"/v1/jobs/{job_id}")
        return job if job["attempts"] else None

    job = await until(tried)
    again, run_at = (datetime.fromisoformat(job[name]) for name in ("next_attempt_at", "run_at"))
    assert 3_590 < (again - run_at).total_seconds() < 3_660


async def test_a_handler_that_throws_has_done_nothing(project: Project) -> None:
    """All of its messages come again, also one that it had acknowledged; no effect stays."""
    name = await deploy(project, FULL | {"max_retries": 0})

    ids = await make(project, name, {"say": "ack"}, {"say": "throw"}, 3)
    jobs = await ends_of(project, ids)

    (run,) = await batches(project, name)
    assert {job["status"] for job in jobs} == {"dead_lettered"}
    assert {job["error"]["message"] for job in jobs} == {"no"}
    assert run["status"] == "failed"
    await project.develop.refused(404, "GET", f"/v1/kv/default/{run['id']}")


async def test_effects_of_a_batch_stay(project: Project) -> None:
    """Once for the batch."""
    name = await deploy(project, FULL)

    await ends_of(project, await make(project, name, 1, 2, 3))

    (run,) = await batches(project, name)
    assert await project.develop.ok("GET", f"/v1/kv/default/{run['id']}") == 3


async def test_no_more_batches_than_allowed_are_at_work(project: Project) -> None:
    """The next one begins when one has ended."""
    source = """export default { async queue() {
      await new Promise((done) => setTimeout(done, 100));
    } }"""
    name = await deploy(project, AT_ONCE | {"max_concurrency": 1}, source)

    await ends_of(project, await make(project, name, 1, 2, 3))

    runs = [
        await project.develop.ok("GET", f"/v1/executions/{run['id']}")
        for run in await batches(project, name)
    ]
    begun = sorted(datetime.fromisoformat(run["clock"]).timestamp() for run in runs)
    assert len(runs) == 3
    assert all(later - earlier > 0.09 for earlier, later in itertools.pairwise(begun))


async def test_a_call_of_the_handler_is_one_message(project: Project) -> None:
    """It is answered with what is to come again."""
    name = await deploy(project, FULL)

    path = f"/v1/functions/{name}/invoke"
    kept = await project.develop.ok("POST", path, {"n": 1})
    again = await project.develop.ok("POST", path, {"say": "retry", "delay": 5})

    assert kept == {"retry": []}
    assert [message["delaySeconds"] for message in again["retry"]] == [5]


async def test_functions_fill_a_queue_with_calls(project: Project) -> None:
    """A call that nobody waits for is a message, too."""
    name = await deploy(project, FULL)
    source = """export default { async job(given, env) {
      for (let n = 1; n < 4; n++) await env.FN.call(given, { n });
    } }"""
    caller = await deploy(project, source=source)

    await ends_of(project, await make(project, caller, name))

    async def came() -> Any:
        return await batches(project, name)

    (run,) = await until(came)
    assert [message["body"]["n"] for message in (await told(project, run))["got"]] == [1, 2, 3]


async def test_a_batch_that_is_replayed_comes_as_it_was(project: Project) -> None:
    """As a run of its own, of which no job hears."""
    name = await deploy(project, FULL)
    await ends_of(project, await make(project, name, 1, 2, 3))
    (run,) = await batches(project, name)

    made = await project.develop.ok("POST", f"/v1/executions/{run['id']}/replay")

    async def again() -> Any:
        found = await batches(project, name)
        return found[1] if len(found) > 1 else None

    second = await until(again)
    assert second["id"] == made["execution_id"]
    assert (await told(project, second))["got"] == (await told(project, run))["got"]


async def test_a_message_that_waits_can_be_cancelled(project: Project) -> None:
    """The others come without it."""
    name = await deploy(project, {"max_batch_size": 3, "max_batch_timeout": 20})

    first, second = await make(project, name, 1, 2)
    await project.develop.ok("DELETE", f"/v1/jobs/{first}")
    rest = [second, *await make(project, name, 3, 4)]
    await ends_of(project, rest)

    *_, run = await batches(project, name)
    assert [message["body"] for message in (await told(project, run))["got"]] == [2, 3, 4]


async def test_a_message_is_cancelled_while_its_batch_is_at_work(project: Project) -> None:
    """Nothing of that batch has happened, so the others come again, for the same attempt."""
    source = """let times = 0;
    export default { async queue(batch, env, ctx) {
      await env.KV.put(`run${++times}`, batch.messages.length);
      if (times === 1) await new Promise((done) => setTimeout(done, 1500));
    } }"""
    name = await deploy(project, {"max_batch_size": 2, "max_batch_timeout": 0.1}, source)

    first, second = await make(project, name, 1, 2)

    async def running() -> Any:
        return (await project.develop.ok("GET", f"/v1/jobs/{first}"))["status"] == "running"

    await until(running)
    await project.develop.ok("DELETE", f"/v1/jobs/{first}")
    cancelled, done = await ends_of(project, [first, second])

    assert (cancelled["status"], done["status"], done["attempts"]) == ("cancelled", "succeeded", 1)
    await project.develop.refused(404, "GET", "/v1/kv/default/run1")
    assert await project.develop.ok("GET", "/v1/kv/default/run2") == 1


WASM = Path(__file__).parent / "guests" / "queue.c"


async def test_a_module_says_what_is_to_come_again(project: Project) -> None:
    """The same envelope for WebAssembly: `delay_seconds` is spelled as everything there."""
    wasm = c_module(WASM, f"-I{ROOT / 'examples' / 'wasm' / 'c'}")
    body = {
        "name": "queue-wasm", "wasm": base64.b64encode(wasm).decode(), "handlers": ["queue"],
        "limits": CALM, "queue": {"max_batch_size": 2, "max_retries": 1},
    }  # fmt: skip
    await project.develop.ok("POST", "/v1/functions", body)

    jobs = await ends_of(project, await make(project, "queue-wasm", "keep", "again"))

    assert [(job["status"], job["attempts"]) for job in jobs] == [
        ("succeeded", 1), ("dead_lettered", 2),
    ]  # fmt: skip
