"""What several nodes may do to one job at the same time: each thing happens once."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, func, insert, select

from engine.ids import new_id
from engine.jobs import Status
from engine.policies import Queued
from engine.store.cancellations import cancel_runs, cancel_waiting, lanes_of
from engine.store.database import Database
from engine.store.dead_letters import Revival, revive
from engine.store.job_keys import KEPT_MS, KeysKnown, KeyUse, claim_keys
from engine.store.jobs import job_row, keep_progress
from engine.store.journal import Commit, Journal, LeaseLost
from engine.store.run_queue import insert_rows, queue_row
from engine.store.tables import dead_letters, executions, idempotency_keys, jobs, run_queue

NOW = 1_700_000_000_000
WAIT_S = 20


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """On each kind of database."""
    opened = Database(database_url)
    opened.migrate()
    yield opened
    opened.close()


@pytest.fixture
async def nodes(database: Database) -> AsyncIterator[list[Journal]]:
    """Two writers on one database, as two processes would be."""
    opened = [Journal(database), Journal(database)]
    for name, journal in zip("ab", opened, strict=True):
        journal.node_id = f"node_{name}"
    yield opened
    async with asyncio.timeout(WAIT_S):
        for journal in opened:
            await journal.close()


def use(key: str, request: str = "r", answer: str = "") -> KeyUse:
    return KeyUse(key=key, request=request, answer=(answer or key).encode())


def job(job_id: str, execution_id: str, status: Status = Status.QUEUED) -> dict[str, Any]:
    row = job_row(
        job_id=job_id,
        project_id="prj_1",
        function_id="fn_1",
        function="one",
        handler="job",
        queue="default",
        priority=0,
        payload="1",
        policy="{}",
        run_at_ms=NOW,
        created_ms=NOW,
        execution_id=execution_id,
        batch_id=None,
    )
    return dict(zip(jobs.columns.keys(), row, strict=True)) | {"status": status.value}


def put_jobs(connection: Connection, count: int, **columns: Any) -> list[tuple[str, str]]:
    """Store jobs with a run each; return (job, execution)."""
    ids = [(new_id("job"), new_id("exe")) for _ in range(count)]
    connection.execute(insert(jobs), [job(*one) for one in ids])
    fields: dict[str, Any] = {
        "project_id": "prj_1", "function_id": "fn_1", "cause": "job", "handler": "job",
        "root_id": "exe_root", "created_ms": NOW, "given": "1",
    } | columns  # fmt: skip
    insert_rows(connection, [queue_row(run_id=run, job_id=of, **fields) for of, run in ids])
    return ids


def put_letter(connection: Connection, **columns: Any) -> str:
    letter = {
        "id": new_id("dlq"), "project_id": "prj_1", "function_id": "fn_1", "function": "one",
        "handler": "job", "cause": "job", "execution_id": "exe_1", "job_id": None,
        "event_id": None, "device_id": None, "schedule_id": None, "payload": "2", "policy": None,
        "queue": "default", "status": "failed", "error": None, "attempts": 3, "created_ms": NOW,
    } | columns  # fmt: skip
    connection.execute(insert(dead_letters).values(letter))
    return str(letter["id"])


def rows(database: Database, query: Any) -> list[Any]:
    return list(database.read_here(lambda connection: connection.execute(query).all()))


def count(database: Database, table: Any) -> int:
    return int(rows(database, select(func.count()).select_from(table))[0][0])


async def at_once(*asked: Callable[[], Any]) -> list[Any]:
    async with asyncio.timeout(WAIT_S):
        return await asyncio.gather(*(one() for one in asked), return_exceptions=True)


# Keys.


async def test_of_many_one_gets_a_key(nodes: list[Journal], database: Database) -> None:
    """From both nodes at the same time; the others are told what it made."""
    asked = [
        partial(node.run, claim_keys, "prj_1", [use("k", answer=f"{at} {number}")], NOW)
        for at, node in enumerate(nodes)
        for number in range(10)
    ]

    answers = await at_once(*asked)

    (stored,) = rows(database, select(idempotency_keys.c.answer, idempotency_keys.c.state))
    refused = [answer for answer in answers if isinstance(answer, KeysKnown)]
    assert answers.count(None) == 1
    assert len(refused) == 19
    assert {one.known["k"].answer for one in refused} == {stored.answer}
    assert stored.state == "answered"


async def test_calls_with_keys_of_each_other_all_come_to_an_end(
    nodes: list[Journal], database: Database
) -> None:
    """In whatever order they name them: each key is taken once, none waits for ever."""
    orders = [list("abcdefgh"), list("hgfedcba"), list("badcfehg"), list("efghabcd")]

    async def claim(node: Journal, keys: list[str]) -> int:
        wanted = dict.fromkeys(keys)
        while wanted:
            try:
                await node.run(claim_keys, "prj_1", [use(key) for key in wanted], NOW)
            except KeysKnown as found:
                for key in found.known:
                    del wanted[key]
            else:
                break
        return len(wanted)

    taken = await at_once(*(partial(claim, node, keys) for keys in orders for node in nodes))

    assert sum(taken) == 8
    assert count(database, idempotency_keys) == 8


async def test_nothing_of_a_call_is_stored_when_a_key_is_known(
    nodes: list[Journal], database: Database
) -> None:
    """Its other keys stay free."""
    node = nodes[0]
    await node.run(claim_keys, "prj_1", [use("b")], NOW)

    with pytest.raises(KeysKnown) as found:
        await node.run(claim_keys, "prj_1", [use("a"), use("b", "other"), use("c")], NOW)

    assert found.value.known == {"b": use("b")}
    assert count(database, idempotency_keys) == 1


async def test_a_key_counts_for_a_day_and_a_project(
    nodes: list[Journal], database: Database
) -> None:
    """Then it can be taken again, once; another project's is another key."""
    node = nodes[0]
    await node.run(claim_keys, "prj_1", [use("k", answer="old")], NOW)
    await node.run(claim_keys, "prj_2", [use("k")], NOW)

    with pytest.raises(KeysKnown):
        await node.run(claim_keys, "prj_1", [use("k")], NOW + KEPT_MS)
    answers = await at_once(
        *(
            partial(one.run, claim_keys, "prj_1", [use("k", answer="new")], NOW + KEPT_MS + 1)
            for one in nodes
        )
    )

    assert answers.count(None) == 1
    assert count(database, idempotency_keys) == 2


# Ends.


async def test_a_run_is_cancelled_or_ends_but_not_both(
    nodes: list[Journal], database: Database
) -> None:
    """Whoever deletes its row first; the job says the same as the record."""
    owner = nodes[0]
    ids = await owner.run(put_jobs, 40, node_id="node_a")

    async def end(job_id: str, run_id: str) -> str:
        commit = Commit(claims=[run_id])
        commit.update(jobs, ("status",), job_id, (Status.SUCCEEDED.value,))
        try:
            await owner.commit(commit)
        except LeaseLost:
            return Status.CANCELLED.value
        return Status.SUCCEEDED.value

    ends, cancels = [], []
    for at, one in enumerate(ids):
        ends.append(partial(end, *one))
        node = nodes[at % 2]
        cancels.append(partial(node.run, cancel_runs, "prj_1", [one[1]], NOW, "because"))
    answers = await at_once(*(one for pair in zip(ends, cancels, strict=True) for one in pair))

    ended, cancelled = answers[::2], answers[1::2]
    statuses = dict(rows(database, select(jobs.c.id, jobs.c.status)))
    for (job_id, run_id), end_of, ids_of in zip(ids, ended, cancelled, strict=True):
        assert statuses[job_id] == end_of
        assert ids_of == ([run_id] if end_of == "cancelled" else [])
    assert count(database, run_queue) == 0
    assert count(database, executions) == sum(map(len, cancelled))


async def test_many_who_cancel_the_same_never_wait_in_a_circle(
    nodes: list[Journal], database: Database
) -> None:
    """Whatever order they name them in: each run is cancelled once, and recorded."""
    ids = await nodes[0].run(put_jobs, 1_200)
    runs = [run_id for _, run_id in ids]

    answers = await at_once(
        *(
            partial(node.run, cancel_runs, "prj_1", order, NOW, "because")
            for node in nodes
            for order in (runs, runs[::-1], runs[500:] + runs[:500])
        )
    )

    assert sorted(run for answer in answers for run in answer) == runs
    assert count(database, executions) == 1_200
    statuses = rows(database, select(jobs.c.status, func.count()).group_by(jobs.c.status))
    assert statuses == [("cancelled", 1_200)]


async def test_a_cancelled_run_is_on_record(nodes: list[Journal], database: Database) -> None:
    """With what it got and why; another project's run is left alone."""
    ((job_id, run_id),) = await nodes[0].run(
        put_jobs, 1, attempt=2, lane="c:fn_1", event_id="evt_1", device_id="dev_1", depth=3
    )

    elsewhere = await nodes[0].run(cancel_runs, "prj_2", [run_id], NOW, "because")
    lanes = database.read_here(lanes_of, ("prj_1", [run_id, "exe_none"]))
    cancelled = await nodes[0].run(cancel_runs, "prj_1", [run_id, "exe_none"], NOW + 5, "because")

    assert (elsewhere, lanes, cancelled) == ([], ["c:fn_1"], [run_id])
    (record,) = rows(database, select(executions))
    assert (record.id, record.status, record.attempt, record.job_id) == (
        run_id, "cancelled", 2, job_id,
    )  # fmt: skip
    assert (record.input, record.event_id, record.device_id) == ("1", "evt_1", "dev_1")
    assert (record.created_ms, record.queue_us) == (NOW, 5_000)
    assert '"message":"because"' in record.report
    assert '"root_id":"exe_root","depth":3' in record.report


# Dead letters.


async def test_a_letter_makes_one_run(nodes: list[Journal], database: Database) -> None:
    """However many redrive it from whatever node; its job is queued again, as new."""
    job_id = new_id("job")

    def put(connection: Connection) -> list[str]:
        dead = job(job_id, "exe_1", Status.DEAD_LETTERED)
        connection.execute(insert(jobs).values(dead | {"attempts": 3, "error": "{}"}))
        return [put_letter(connection, job_id=job_id), *(put_letter(connection) for _ in range(9))]

    letters = await nodes[0].run(put)
    orders = [letters, letters[::-1], letters[5:] + letters[:5]]
    asked = [
        {
            letter: Revival(execution_id=new_id("exe"), policy=Queued(max_attempts=3), lane=None)
            for letter in order
        }
        for order in orders * 2
    ]

    answers = await at_once(
        *(
            partial(nodes[at % 2].run, revive, "prj_1", revivals, NOW)
            for at, revivals in enumerate(asked)
        )
    )

    assert sorted(one for ids, _ in answers for one in ids) == letters
    assert count(database, dead_letters) == 0
    queued = rows(database, select(run_queue))
    assert len(queued) == 10
    assert {(run.attempt, run.input, run.node_id) for run in queued} == {(1, "2", None)}
    (redriven,) = rows(database, select(jobs))
    (run,) = [run for run in queued if run.job_id == job_id]
    assert (redriven.status, redriven.attempts, redriven.error) == ("queued", 0, None)
    assert (redriven.execution_id, redriven.payload, run.priority) == (run.id, "2", 0)


# Progress.


async def test_only_a_run_that_is_still_there_says_how_far_it_is(
    nodes: list[Journal], database: Database
) -> None:
    """One that was cancelled, or whose node was taken over meanwhile, is not heard."""
    node = nodes[0]
    ((job_id, run_id),) = await node.run(put_jobs, 1)

    await node.run(keep_progress, job_id, run_id, "first")
    await node.run(keep_progress, job_id, "exe_before", "of an earlier attempt")
    await node.run(cancel_runs, "prj_1", [run_id], NOW, "because")
    await node.run(keep_progress, job_id, run_id, "too late")

    assert rows(database, select(jobs.c.progress, jobs.c.status)) == [("first", "cancelled")]


async def test_a_functions_runs_end_with_it_or_before(
    nodes: list[Journal], database: Database
) -> None:
    """While another node ends them: each is on record once."""
    owner, other = nodes
    ids = await owner.run(put_jobs, 600, node_id="node_a")

    def record(run_id: str) -> tuple[Any, ...]:
        known = {"project_id": "prj_1", "id": run_id, "status": "succeeded"}
        return tuple(
            known.get(name, 0 if column.type.python_type is int else "")
            for name, column in executions.columns.items()
        )

    async def end(run_id: str) -> bool:
        commit = Commit(claims=[run_id])
        commit.insert(executions, record(run_id))
        try:
            await owner.commit(commit)
        except LeaseLost:
            return False
        return True

    answers = await at_once(
        *(partial(end, run_id) for _, run_id in ids[:300]),
        partial(other.run, cancel_waiting, "fn_1", "one", NOW),
        *(partial(end, run_id) for _, run_id in ids[300:]),
    )

    statuses = Counter(rows(database, select(executions.c.status)))
    assert all(isinstance(answer, bool | None) for answer in answers), answers
    assert statuses["succeeded",] == answers.count(True)
    assert statuses.total() == 600
    assert count(database, run_queue) == 0
