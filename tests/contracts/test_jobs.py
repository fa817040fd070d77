"""Jobs over HTTP: made one by one or many at once, tried again, watched, cancelled."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from engine.clock import iso, wall_clock
from engine.quotas import PARAMS_BYTES_MAX
from engine.settings import Settings
from engine.wiring import Platform, open_platform
from tests.standins.control_plane import (  # noqa: F401 - fixtures
    Caller,
    Project,
    http,
    neighbour,
    project,
    shared,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

CALM = {"cpu_ms": 2_000, "wall_ms": 20_000}  # two cores are shared with whatever else runs
SOON = {"kind": "fixed", "base_seconds": 0.01}
TELLS = """export default { async job(given, env, ctx) {
  if (given?.failUntil > ctx.attempt) throw new Error(`attempt ${ctx.attempt}`);
  return { given, attempt: ctx.attempt };
} }"""
_numbers = itertools.count(1)


class AheadClock:
    """The machine's time, and as much later as a test says."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def __call__(self) -> int:
        return wall_clock() + self.ahead_ms


@pytest.fixture(scope="module")
def clock() -> AheadClock:
    return AheadClock()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(
    tmp_path_factory: pytest.TempPathFactory, database_settings: dict[str, str], clock: AheadClock
) -> AsyncIterator[Platform]:
    """One for all tests of a module, on each kind of database."""
    data_dir = tmp_path_factory.mktemp("jobs") / "data"
    settings = Settings(data_dir=data_dir, warm_cells=2, **database_settings)
    async with open_platform(settings, clock=clock) as opened:
        yield opened


async def deploy(project: Project, source: str = TELLS, **fields: Any) -> str:
    name = f"job-{next(_numbers)}"
    await project.function(name, source, **{"limits": CALM} | fields)
    return name


async def make(project: Project, function: str, payload: Any = None, **fields: Any) -> Any:
    body = {"function": function, "payload": payload, **fields}
    return await project.develop.ok("POST", "/v1/jobs", body)


async def look(project: Project, job_id: str) -> Any:
    return await project.develop.ok("GET", f"/v1/jobs/{job_id}")


async def until(question: Callable[[], Any]) -> Any:
    """Return the first true answer to a question that is asked over HTTP."""
    async with asyncio.timeout(20):
        while not (answer := await question()):
            await asyncio.sleep(0.02)
    return answer


async def end_of(project: Project, job_id: str) -> Any:
    """Wait for the end of a job, and return it."""

    async def ended() -> Any:
        job = await project.develop.ok("GET", f"/v1/jobs/{job_id}?wait=20")
        return None if job["status"] in {"queued", "running"} else job

    return await until(ended)


async def in_status(project: Project, job_id: str, status: str) -> Any:
    async def there() -> Any:
        job = await look(project, job_id)
        return job if job["status"] == status else None

    return await until(there)


# One job.


async def test_a_job_runs_and_its_result_can_be_asked_for(project: Project) -> None:
    """The answer comes before the run; whoever waits gets the end of it."""
    name = await deploy(project)

    answer = await project.develop.call("POST", "/v1/jobs", {"function": name, "payload": {"a": 1}})
    job = await end_of(project, answer.json()["id"])

    assert (answer.status_code, answer.json()["status"]) == (201, "queued")
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["status"], job["result"]) == ("succeeded", {"given": {"a": 1}, "attempt": 1})
    assert (job["function"], job["handler"], job["queue"]) == (name, "job", "default")
    assert (job["priority"], job["attempts"], job["max_attempts"]) == ("default", 1, 3)
    assert (job["error"], job["next_attempt_at"], job["batch"]) == (None, None, None)
    assert job["execution_id"] == answer.json()["execution_id"]
    (run,) = job["executions"]
    assert (run["id"], run["status"], run["attempt"]) == (job["execution_id"], "succeeded", 1)
    ran = await project.develop.ok("GET", f"/v1/executions/{run['id']}")
    assert (ran["cause"], ran["job_id"], ran["input"]) == ("job", job["id"], {"a": 1})


MAIN = "function main(given, done) { done(null, 'main') }"
JOB = "function job(given, done) { done(null, 'job') }"
HANDLERS = {
    "main before others": (MAIN + MAIN.replace("main", "trigger"), None, "main"),
    "job before main": (MAIN + JOB, None, "job"),
    "the one asked for": (MAIN + JOB, "main", "main"),
    "the only one": ("export default { afterStore() { return 'afterStore' } }", None, "afterStore"),
    "a default export": ("export default () => 'default'", None, "default"),
    "fetch": ("export default { async fetch(r) { return Response.json(await r.json()) } }", None,
              "fetch"),
}  # fmt: skip


@pytest.mark.parametrize("case", HANDLERS)
async def test_the_handler_is_the_one_for_jobs(project: Project, case: str) -> None:
    """Asked for, or `job`, `queue`, `main`, or what a call would mean; `fetch` gets a request."""
    source, asked, expected = HANDLERS[case]
    name = await deploy(project, source)

    made = await make(project, name, "fetch", **({"handler": asked} if asked else {}))
    job = await end_of(project, made["id"])

    assert (job["status"], job["handler"], job["payload"]) == ("succeeded", expected, "fetch")
    result = job["result"]
    assert (result if expected != "fetch" else result["body"]) in {expected, '"fetch"'}


WRONG: dict[str, tuple[dict[str, Any], int, str]] = {
    "no such function": ({"function": "none"}, 404, ""),
    "function of a number": ({"function": 1}, 422, "/function"),
    "no such handler": ({"handler": "scheduled"}, 422, "/handler"),
    "unknown field": ({"dealy_seconds": 1}, 422, "/dealy_seconds"),
    "two times": ({"run_at": "2999-01-01T00:00:00Z", "delay_seconds": 1}, 422, "/run_at"),
    "no time": ({"run_at": "tomorrow"}, 422, "/run_at"),
    "too far away": ({"run_at": "2999-01-01T00:00:00Z"}, 422, "/run_at"),
    "a delay of text": ({"delay_seconds": "5m"}, 422, "/delay_seconds"),
    "a negative delay": ({"delay_seconds": -1}, 422, "/delay_seconds"),
    "a delay of two years": ({"delay_seconds": 2 * 365 * 86_400}, 422, "/delay_seconds"),
    "no queue": ({"queue": ""}, 422, "/queue"),
    "a queue with a space": ({"queue": "a b"}, 422, "/queue"),
    "a long queue": ({"queue": "a" * 65}, 422, "/queue"),
    "another priority": ({"priority": "highest"}, 422, "/priority"),
    "no key": ({"idempotency_key": ""}, 422, "/idempotency_key"),
    "a long key": ({"idempotency_key": "k" * 256}, 422, "/idempotency_key"),
    "a line in a key": ({"idempotency_key": "a\nb"}, 422, "/idempotency_key"),
    "no attempt": ({"max_attempts": 0}, 422, "/max_attempts"),
    "many attempts": ({"max_attempts": 101}, 422, "/max_attempts"),
    "attempts of text": ({"max_attempts": "3"}, 422, "/max_attempts"),
    "another backoff": ({"backoff": {"kind": "linear"}}, 422, "/backoff/kind"),
    "no base": ({"backoff": {"base_seconds": 0}}, 422, "/backoff/base_seconds"),
    "a cap below its base": ({"backoff": {"base_seconds": 9, "cap_seconds": 8}}, 422,
                             "/backoff/cap_seconds"),
    "a cap of two days": ({"backoff": {"cap_seconds": 172_800}}, 422, "/backoff/cap_seconds"),
    "an unknown part": ({"backoff": {"factor": 3}}, 422, "/backoff/factor"),
    "no life": ({"ttl_seconds": 0}, 422, "/ttl_seconds"),
    "a large payload": ({"payload": "a" * PARAMS_BYTES_MAX}, 413, ""),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
async def test_a_wrong_job_is_refused_with_its_field(shared: Project, case: str) -> None:
    """Nothing of it is stored; in a call of several it has the same words."""
    body, status, pointer = WRONG[case]
    body = {"function": "echo", **body}

    problem = await shared.develop.refused(status, "POST", "/v1/jobs", body)
    several = await shared.develop.ok("POST", "/v1/jobs", [body])

    assert [one["pointer"] for one in problem.get("errors", [])] == ([pointer] if pointer else [])
    (item,) = several["items"]
    assert (item["status"], item["code"]) == (problem["status"], problem["code"])
    assert (item["detail"], item.get("errors")) == (problem["detail"], problem.get("errors"))
    assert await shared.develop.items("/v1/jobs") == []


@pytest.mark.parametrize("body", [b"", b"{", b"[{]", b"5", b'"a"', b'{"jobs": 5}', b'{"jobs": []}'])
async def test_what_is_no_job_is_refused(shared: Project, body: bytes) -> None:
    """400 if it is no JSON, else 422."""
    answer = await shared.develop.call("POST", "/v1/jobs", content=body)

    code = answer.json()["code"]
    no_json = body in {b"", b"{", b"[{]"}
    assert (answer.status_code, code) == (
        (400, "malformed_json") if no_json else (422, "validation_failed")
    )


async def test_what_the_limits_allow_is_taken(project: Project) -> None:
    """The ends of each range belong to it."""
    name = await deploy(project)
    fields = [
        {"payload": "a" * (PARAMS_BYTES_MAX - 2), "delay_seconds": 0, "queue": "A0._-" + "q" * 59},
        {"delay_seconds": 365 * 86_400, "max_attempts": 100, "ttl_seconds": 365 * 86_400},
        {"run_at": "1970-01-01T00:00:00Z", "idempotency_key": "ü" * 255, "max_attempts": 1},
        {"backoff": {"base_seconds": 86_400, "cap_seconds": 86_400}, "ttl_seconds": 0.001,
         "delay_seconds": 9},
    ]  # fmt: skip

    answer = await project.develop.ok(
        "POST", "/v1/jobs", {"jobs": [{"function": name, **one} for one in fields]}
    )

    assert [item["status"] for item in answer["items"]] == [201] * 4, answer


# Later.


async def test_a_job_waits_for_its_time(project: Project, clock: AheadClock) -> None:
    """It says when that is; then it runs."""
    name = await deploy(project)

    made = await make(project, name, delay_seconds=3_600)
    waiting = await look(project, made["id"])
    clock.ahead_ms += 3_601_000
    ran = await end_of(project, made["id"])

    assert (waiting["status"], waiting["attempts"]) == ("queued", 0)
    assert waiting["next_attempt_at"] == waiting["run_at"] == made["run_at"]
    assert (ran["status"], ran["run_at"]) == ("succeeded", made["run_at"])


async def test_a_time_that_is_over_means_now(project: Project) -> None:
    """A job for yesterday runs at once."""
    name = await deploy(project)

    made = await make(project, name, run_at=iso(wall_clock() - 86_400_000))

    assert (await end_of(project, made["id"]))["status"] == "succeeded"


async def test_a_job_that_comes_too_late_is_skipped(project: Project, clock: AheadClock) -> None:
    """Its life counts from the time it is for; the record says what happened."""
    name = await deploy(project)

    made = await make(project, name, delay_seconds=60, ttl_seconds=10)
    waiting = await look(project, made["id"])
    clock.ahead_ms += 120_000
    job = await end_of(project, made["id"])

    assert waiting["expires_at"] > waiting["run_at"]
    assert (job["status"], job["error"]["name"], job["error"]["reason"]) == (
        "skipped", "Skipped", "expired",
    )  # fmt: skip
    assert [run["status"] for run in job["executions"]] == ["skipped"]
    assert await project.develop.items("/v1/dead-letters") == []


# Again.


async def test_a_job_is_tried_until_it_succeeds(project: Project) -> None:
    """Each attempt has a run of its own; the job shows the last."""
    name = await deploy(project)

    made = await make(project, name, {"failUntil": 3}, backoff=SOON)
    job = await end_of(project, made["id"])

    assert (job["status"], job["attempts"], job["error"]) == ("succeeded", 3, None)
    assert job["result"]["attempt"] == 3
    runs = job["executions"]
    assert [run["status"] for run in runs] == ["failed", "failed", "succeeded"]
    assert [run["attempt"] for run in runs] == [1, 2, 3]
    assert job["execution_id"] == runs[-1]["id"]


async def test_a_job_that_always_fails_becomes_a_dead_letter(project: Project) -> None:
    """After as many attempts as it has, three unless it says another number."""
    name = await deploy(project)

    made = [
        await make(project, name, {"failUntil": 99}, backoff=SOON, **fields)
        for fields in ({}, {"max_attempts": 1})
    ]
    jobs = [await end_of(project, one["id"]) for one in made]

    assert [job["status"] for job in jobs] == ["dead_lettered"] * 2
    assert [job["attempts"] for job in jobs] == [3, 1]
    assert jobs[0]["error"]["message"] == "attempt 3"
    letters = await project.develop.items("/v1/dead-letters")
    assert {letter["job_id"] for letter in letters} == {job["id"] for job in jobs}


async def test_between_two_attempts_a_job_waits(project: Project) -> None:
    """It shows what went wrong, and when it is tried again."""
    name = await deploy(project)
    backoff = {"kind": "fixed", "base_seconds": 3_600}

    made = await make(project, name, {"failUntil": 99}, backoff=backoff)

    async def tried() -> Any:
        job = await look(project, made["id"])
        return job if job["attempts"] else None

    job = await until(tried)
    assert (job["status"], job["ended_at"]) == ("queued", None)
    assert job["error"]["message"] == "attempt 1"
    assert job["next_attempt_at"] > job["run_at"]
    assert [run["status"] for run in job["executions"]] == ["failed", "queued"]
    await project.develop.ok("DELETE", f"/v1/jobs/{made['id']}")


# Many.


async def test_many_jobs_are_made_in_one_call(project: Project) -> None:
    """A bad one does not spoil the others; each has its answer in its place."""
    name = await deploy(project)
    bodies = [{"function": name, "payload": number} for number in range(5)]
    bodies[2] = {"function": "none"}
    bodies[4] = {"function": name, "payload": 4, "priority": "low"}

    answer = await project.develop.ok("POST", "/v1/jobs", bodies)

    assert (answer["accepted"], answer["rejected"]) == (4, 1)
    assert [item["status"] for item in answer["items"]] == [201, 201, 404, 201, 201]
    jobs = [await end_of(project, item["id"]) for item in answer["items"] if "id" in item]
    assert [job["result"]["given"] for job in jobs] == [0, 1, 3, 4]
    assert {job["batch"] for job in jobs} == {answer["batch"]}
    listed = await project.develop.items("/v1/jobs", batch=answer["batch"])
    assert [job["id"] for job in listed] == [job["id"] for job in reversed(jobs)]


async def test_a_call_makes_up_to_1000_jobs(project: Project) -> None:
    """All of them run; with one more nothing is made."""
    name = await deploy(project)

    answer = await project.develop.ok("POST", "/v1/jobs", [{"function": name}] * 1_000)
    problem = await project.develop.refused(
        422, "POST", "/v1/jobs", {"jobs": [{"function": name}] * 1_001}
    )

    assert answer["accepted"] == 1_000
    assert "1001 jobs; 1 to 1000" in problem["detail"]

    async def all_ended() -> bool:
        return len(await project.develop.items("/v1/jobs", status="succeeded")) == 1_000

    await until(all_ended)


# Once.


async def test_one_key_makes_one_job(project: Project) -> None:
    """Sent again, by whomever and at the same time, it is answered as it was the first time."""
    name = await deploy(project)
    body = {"function": name, "payload": {"a": 1}, "idempotency_key": "order 1"}

    answers = await asyncio.gather(
        *(project.develop.call("POST", "/v1/jobs", body) for _ in range(10))
    )
    later = await project.operate.call(
        "POST", "/v1/jobs", {"idempotency_key": "order 1", "payload": {"a": 1}, "function": name}
    )

    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in (*answers, later)}) == 1
    replayed = [answer.headers.get("idempotent-replayed") for answer in answers]
    assert sorted(replayed, key=str) == [None] + ["true"] * 9
    assert later.headers["location"] == f"/v1/jobs/{later.json()['id']}"
    await end_of(project, later.json()["id"])
    assert len(await project.develop.items("/v1/jobs")) == 1


async def test_a_key_for_another_job_is_refused(project: Project, neighbour: Project) -> None:
    """Another project's keys are its own."""
    name = await deploy(project)
    await neighbour.function(name, TELLS)
    await make(project, name, 1, idempotency_key="k")

    body = {"function": name, "payload": 2, "idempotency_key": "k"}
    problem = await project.develop.refused(422, "POST", "/v1/jobs", body)
    elsewhere = await neighbour.develop.call("POST", "/v1/jobs", body)

    assert problem["code"] == "idempotency_mismatch"
    assert "'k'" in problem["detail"]
    assert elsewhere.status_code == 201
    assert "idempotent-replayed" not in elsewhere.headers


async def test_keys_count_within_one_call_too(project: Project) -> None:
    """The first job with a key is made, the next is the same one, a different one is refused."""
    name = await deploy(project)
    known = await make(project, name, 0, idempotency_key="a")
    given = [("a", 0), ("b", 1), ("b", 1), ("b", 2), ("a", 1), (None, 1)]

    answer = await project.develop.ok(
        "POST",
        "/v1/jobs",
        [{"function": name, "payload": payload, "idempotency_key": key} for key, payload in given],
    )

    items = answer["items"]
    assert [item["status"] for item in items] == [201, 201, 201, 422, 422, 201]
    assert items[0]["id"] == known["id"]
    assert items[1]["id"] == items[2]["id"]
    assert [item.get("replayed") for item in items] == [True, None, True, None, None, None]
    assert len(await project.develop.items("/v1/jobs")) == 3


async def test_a_key_is_free_again_after_a_day(project: Project, clock: AheadClock) -> None:
    """Then it makes another job."""
    name = await deploy(project)
    first = await make(project, name, idempotency_key="k")
    clock.ahead_ms += 86_399_000
    same = await make(project, name, idempotency_key="k")
    clock.ahead_ms += 2_000

    other = await make(project, name, 1, idempotency_key="k")

    assert same["id"] == first["id"] != other["id"]


async def test_a_request_with_a_key_of_its_own_is_answered_again(project: Project) -> None:
    """The header is the whole request's, of one job or several; a job's key counts besides."""
    name = await deploy(project)
    one, keyed = {"function": name}, {"function": name, "idempotency_key": "k"}
    await make(project, name, idempotency_key="k")

    for number, body in enumerate((one, [one, {"function": "none"}, keyed], keyed)):
        sent = {"headers": {"Idempotency-Key": f"request-{number}"}}
        first, again = [
            await project.develop.call("POST", "/v1/jobs", body, **sent) for _ in range(2)
        ]
        assert first.is_success, first.text
        assert (again.status_code, again.content) == (first.status_code, first.content)
        assert again.headers["idempotent-replayed"] == "true"

    assert len(await project.develop.items("/v1/jobs")) == 3


# How far.


async def test_a_job_says_how_far_it_is(project: Project) -> None:
    """While it runs; each word may be read, the last of a burst is."""
    name = await deploy(
        project,
        """export default { async job(given, env, ctx) {
          for (let n = 1; n <= 20; n++) await ctx.progress(n / 40, `step ${n}`);
          await new Promise(done => setTimeout(done, 15_000));
        } }""",
    )
    made = await make(project, name)

    async def half() -> Any:
        job = await look(project, made["id"])
        return job if (job["progress"] or {}).get("value") == 0.5 else None

    job = await until(half)
    assert (job["status"], job["progress"]["message"]) == ("running", "step 20")
    assert job["progress"]["at"] >= job["created_at"]
    await project.develop.ok("DELETE", f"/v1/jobs/{made['id']}")


async def test_a_wrong_progress_is_the_functions_error(project: Project) -> None:
    """Which it can catch; nothing is stored."""
    name = await deploy(
        project,
        """export default { async job(given, env, ctx) {
          const told = [];
          for (const [value, message] of [[1.1], [-1], ["half"], [NaN], [0.5, "x".repeat(501)], []])
            await ctx.progress(value, message).catch(error => told.push(error.code));
          return told;
        } }""",
    )

    job = await end_of(project, (await make(project, name))["id"])

    wrong = "invalid_arguments"
    assert job["result"] == ["validation_failed"] * 2 + [wrong] * 2 + ["validation_failed", wrong]
    assert job["progress"] is None


async def test_a_run_that_is_no_job_has_no_progress(project: Project) -> None:
    """There saying it does nothing."""
    name = await deploy(
        project, "export default async (given, env, ctx) => { await ctx.progress(1); return 1 }"
    )

    assert await project.develop.ok("POST", f"/v1/functions/{name}/invoke") == 1


# Not.


async def test_a_queued_job_can_be_cancelled(project: Project, clock: AheadClock) -> None:
    """It never runs; a second time there is nothing to cancel."""
    name = await deploy(project)
    made = await make(project, name, delay_seconds=60)

    await project.develop.ok("DELETE", f"/v1/jobs/{made['id']}")
    clock.ahead_ms += 61_000
    problem = await project.develop.refused(409, "DELETE", f"/v1/jobs/{made['id']}")

    job = await look(project, made["id"])
    assert (job["status"], job["attempts"], job["next_attempt_at"]) == ("cancelled", 0, None)
    assert job["error"] == {"name": "Cancelled", "message": "it was cancelled"}
    assert [run["status"] for run in job["executions"]] == ["cancelled"]
    assert "ended: cancelled" in problem["detail"]


async def test_a_running_job_can_be_cancelled(project: Project) -> None:
    """Nothing that it did is applied, and its place is free for the next one."""
    name = await deploy(
        project,
        """export default { async job(given, env) {
          await env.KV.put("key", given);
          if (given === "first") await new Promise(done => setTimeout(done, 15_000));
        } }""",
    )
    made = await make(project, name, "first")
    await in_status(project, made["id"], "running")

    await project.develop.ok("DELETE", f"/v1/jobs/{made['id']}")
    job = await look(project, made["id"])
    other = await end_of(project, (await make(project, name, "second"))["id"])

    assert (job["status"], [run["status"] for run in job["executions"]]) == (
        "cancelled", ["cancelled"],
    )  # fmt: skip
    assert other["status"] == "succeeded"
    assert await project.operate.ok("GET", "/v1/kv/default/key") == "second"
    async with asyncio.timeout(10):  # the cancelled one has been stopped, too
        while project.platform.dispatcher.inflight:
            await asyncio.sleep(0.02)
    assert (await look(project, made["id"]))["status"] == "cancelled"


async def test_a_cancelled_job_makes_room_for_the_next(project: Project) -> None:
    """Where only one may run at a time: at once, not when somebody looks for room."""
    name = await deploy(
        project,
        """export default { async job(given) {
          if (given === "first") await new Promise(done => setTimeout(done, 15_000));
        } }""",
        flow={"concurrency": {"limit": 1}},
    )
    first = await make(project, name, "first")
    await in_status(project, first["id"], "running")
    second = await make(project, name, "second")
    waiting = await look(project, second["id"])

    await project.develop.ok("DELETE", f"/v1/jobs/{first['id']}")
    async with asyncio.timeout(5):  # half of the time after which the backlog looks by itself
        job = await end_of(project, second["id"])

    assert (waiting["status"], job["status"]) == ("queued", "succeeded")


async def test_a_job_that_has_ended_cannot_be_cancelled(project: Project) -> None:
    """It stays as it ended."""
    name = await deploy(project)
    job = await end_of(project, (await make(project, name))["id"])

    problem = await project.develop.refused(409, "DELETE", f"/v1/jobs/{job['id']}")

    assert "succeeded" in problem["detail"]
    assert await look(project, job["id"]) == job


async def test_jobs_of_a_deleted_function_are_cancelled(project: Project) -> None:
    """Their records say why."""
    name = await deploy(project)
    made = await make(project, name, delay_seconds=60)

    await project.develop.ok("DELETE", f"/v1/functions/{name}")

    job = await look(project, made["id"])
    assert (job["status"], job["error"]["message"]) == ("cancelled", "the function was deleted")
    assert await project.develop.items("/v1/jobs", function=name, status="cancelled")


# Lists.


async def test_jobs_are_listed_by_what_they_are(project: Project) -> None:
    """Newest first, page by page; another project sees none of it."""
    name, other = await deploy(project), await deploy(project)
    await make(project, name, queue="images")
    await make(project, other, queue="images", delay_seconds=60)
    failing = await make(project, name, {"failUntil": 9}, max_attempts=1, priority="high")
    await end_of(project, failing["id"])

    async def functions(**query: Any) -> list[str]:
        return [job["function"] for job in await project.develop.items("/v1/jobs", **query)]

    assert await functions(limit=1) == [name, other, name]
    assert await functions(queue="images") == [other, name]
    assert await functions(function=other) == [other]
    assert await functions(status="queued") == [other]
    assert await functions(status="dead_lettered") == [name]
    assert await functions(status="running") == []
    assert await functions(since=iso(project.platform.clock() + 1_000)) == []
    assert len(await functions(since="2010-10-29T00:00:00Z")) == 3
    assert await functions(function="none") == []
    assert await functions(batch="bat_1") == []
    for query, pointer in (
        ("status=done", "?status"),
        ("since=x", "?since"),
        ("limit=0", "?limit"),
    ):
        problem = await project.develop.refused(422, "GET", f"/v1/jobs?{query}")
        assert problem["errors"][0]["pointer"] == pointer


async def test_a_running_job_is_listed_as_running(project: Project) -> None:
    """And not as queued."""
    name = await deploy(
        project, "export default { job() { return new Promise(done => setTimeout(done, 15_000)) } }"
    )
    made = await make(project, name)
    await in_status(project, made["id"], "running")

    listed = await project.develop.items("/v1/jobs", status="running")

    assert [job["id"] for job in listed] == [made["id"]]
    assert await project.develop.items("/v1/jobs", status="queued") == []
    runs = await project.develop.items("/v1/executions", status="running")
    assert [run["id"] for run in runs] == [made["execution_id"]]
    await project.develop.ok("DELETE", f"/v1/jobs/{made['id']}")


async def test_a_job_is_its_projects_own(project: Project, neighbour: Project) -> None:
    """Another one can neither see nor cancel it."""
    name = await deploy(project)
    made = await make(project, name, delay_seconds=60)

    for method in ("GET", "DELETE"):
        problem = await neighbour.admin.refused(404, method, f"/v1/jobs/{made['id']}", headers={})
        assert problem["code"] == "not_found"

    assert await neighbour.develop.items("/v1/jobs") == []
    assert (await look(project, made["id"]))["status"] == "queued"


async def test_whoever_waits_for_a_job_waits_30_seconds_at_most(project: Project) -> None:
    """More is refused; a job that has ended is shown at once."""
    name = await deploy(project)
    job = await end_of(project, (await make(project, name))["id"])

    for wait in ("31", "-1", "x"):
        problem = await project.develop.refused(422, "GET", f"/v1/jobs/{job['id']}?wait={wait}")
        assert problem["errors"][0]["pointer"] == "?wait"
    async with asyncio.timeout(10):
        await project.develop.ok("GET", f"/v1/jobs/{job['id']}?wait=30")
