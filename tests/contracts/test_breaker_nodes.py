"""Breakers of several nodes: opened once, tried by one, closed for all, on each database."""

import asyncio
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection, insert, select

from engine.breaker_rules import HARM_MAX
from engine.clock import wall_clock
from engine.ids import new_id
from engine.settings import Settings
from engine.store import breakers as store
from engine.store import nodes as nodes_store
from engine.store.breakers import HALF_OPEN, OPEN, Breaker
from engine.store.database import Database
from engine.store.deployments import Deployment, Share, insert_deployment
from engine.store.journal import Journal
from engine.store.nodes import NewNode
from engine.store.projects import Project, insert_project
from engine.store.run_queue import insert_rows, queue_row
from engine.store.tables import PARKED, functions, run_queue, versions
from engine.wiring import open_platform
from tests.standins.control_plane import Caller
from tests.standins.servers import Postgres

NOW_MS = 1_800_000_000_000
FIRST = Breaker(
    id="brk_1", project_id="prj", function_id="fn", version_id="v1", device_id="", state=OPEN,
    error={"status": "crashed", "name": "", "message": ""}, failures=5, openings=1,
    opened_ms=NOW_MS, until_ms=NOW_MS + 30_000,
)  # fmt: skip
KILLS = "export default { async job(given) { if (given === 'kill') for (;;); return given; } }"


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """With a function that has two versions."""
    opened = Database(database_url)
    opened.migrate()
    with opened.engine.begin() as connection:
        insert_project(connection, Project(id="prj", name="p", created_ms=NOW_MS))
        connection.execute(
            insert(functions).values(
                id="fn", project_id="prj", name="f", runtime="javascript", created_ms=NOW_MS
            )
        )
        for number in (1, 2):
            connection.execute(
                insert(versions).values(
                    id=f"v{number}", function_id="fn", number=number, files="{}", main="m.js",
                    program="{}", handlers="[]", limits="{}", allowed_hosts="[]", variables="{}",
                    secrets="[]", message="", created_ms=NOW_MS,
                )
            )  # fmt: skip
        deploy(connection, (1, 50), (2, 50))
    yield opened
    opened.close()


def deploy(connection: Connection, *shares: tuple[int, int]) -> None:
    live = tuple(Share(version, percent) for version, percent in shares)
    deployment = Deployment(
        id=new_id("dep"), function_id="fn", versions=live, message="", created_ms=NOW_MS
    )
    insert_deployment(connection, deployment)


@asynccontextmanager
async def journal_of(database: Database) -> Any:
    journal = Journal(database)
    yield journal
    await journal.close()


def waiting(database: Database) -> dict[str, int]:
    def read(connection: Connection) -> dict[str, int]:
        return {
            row.id: row.due_ms
            for row in connection.execute(select(run_queue.c.id, run_queue.c.due_ms))
        }

    return database.read_here(read)


def queued(run_id: str, function_id: str = "fn", **fields: Any) -> tuple[Any, ...]:
    return queue_row(
        run_id=run_id, project_id="prj", function_id=function_id, cause="job", handler="job",
        root_id=run_id, created_ms=NOW_MS, given="{}", **fields,
    )  # fmt: skip


async def test_two_nodes_that_open_at_once_open_one(database: Database) -> None:
    """The second one finds the first one's, and holds back by that."""
    async with journal_of(database) as journal:
        assert await journal.run(store.open_breaker, FIRST)
        assert not await journal.run(store.open_breaker, replace(FIRST, id="brk_2"))
        assert await journal.run(store.open_breaker, replace(FIRST, id="brk_3", device_id="dev"))

    assert [one.id for one in await database.read(store.all_breakers)] == ["brk_1", "brk_3"]


async def test_no_breaker_opens_for_a_version_that_was_just_replaced(database: Database) -> None:
    """Nobody would close it: who deploys has deleted those of the versions before, already."""
    async with journal_of(database) as journal:
        await journal.run(deploy, (2, 100))

        assert not await journal.run(store.open_breaker, FIRST)
        assert await journal.run(store.open_breaker, replace(FIRST, version_id="v2"))


async def test_a_trial_is_one_nodes_and_not_for_ever(database: Database) -> None:
    """Nobody has it before it is due; then one has it; if that one dies, the next one has.

    And if the clock is set back by two hours, nobody waits two hours for it.
    """
    due_ms = FIRST.until_ms
    async with journal_of(database) as journal:
        await journal.run(store.open_breaker, FIRST)

        claims = [
            await journal.run(store.begin_trial, FIRST, at_ms, at_ms + 60_000)
            for at_ms in (due_ms - 1, due_ms, due_ms, due_ms + 59_999, due_ms + 60_000)
        ]

        set_back_ms = due_ms - 7_200_000
        (now,) = await database.read(store.all_breakers, "prj")
        assert await journal.run(store.begin_trial, now, set_back_ms, set_back_ms + 60_000)

    assert claims == [False, True, False, False, True]
    assert (now.state, now.until_ms) == (HALF_OPEN, due_ms + 120_000)


async def test_a_trial_is_lost_with_its_node(database: Database) -> None:
    """Whoever takes over, or starts alone, lets the next run try at once; others' trials go on."""
    now_ms = wall_clock()
    theirs = replace(FIRST, id="brk_2", version_id="v2", opened_ms=now_ms, until_ms=now_ms)
    mine = replace(theirs, id="brk_1", version_id="v1")
    until_ms = now_ms + 900_000
    async with journal_of(database) as journal, journal_of(database) as dead:
        for one, breaker in ((journal, mine), (dead, theirs)):
            node = NewNode(id=breaker.id, kind="serve", host="h", pid=1, release="1", now_ms=now_ms)
            await one.run(nodes_store.register, node)
            one.node_id = node.id
            await one.run(store.open_breaker, breaker)
            assert await one.run(store.begin_trial, breaker, now_ms, until_ms)

        assert await journal.run(nodes_store.take_over, dead.node_id, 0)
        after_takeover = [one.until_ms for one in await database.read(store.all_breakers)]
        claimed = await journal.run(store.begin_trial, theirs, wall_clock() + 50, until_ms)
        await journal.run(nodes_store.leave_alone)
        after_start = [one.until_ms for one in await database.read(store.all_breakers)]

    assert after_takeover[0] == until_ms
    assert now_ms <= after_takeover[1] <= wall_clock() + 50
    assert claimed
    assert max(after_start) <= wall_clock() + 50


async def test_closing_makes_due_what_waits_for_it_and_nothing_else(database: Database) -> None:
    """Runs that were put off to its end; not those that are for later anyway, nor of others."""
    async with journal_of(database) as journal:
        await journal.run(store.open_breaker, FIRST)
        rows = [
            queued("exe_held", node_id="me"),
            queued("exe_elsewhere", node_id="you"),
            queued("exe_later", due_ms=FIRST.until_ms + 1),
            queued("exe_other", "fn2", due_ms=FIRST.until_ms),
        ]
        await journal.run(insert_rows, rows)
        ids = ["exe_held", "exe_elsewhere"]
        put_off = await journal.run(store.put_off_runs, "me", ids, FIRST.until_ms)
        assert put_off == ["exe_held"]

        closed, woken = await journal.run(store.close_breaker, "prj", FIRST.id, NOW_MS + 5)
        again = await journal.run(store.close_breaker, "prj", FIRST.id, NOW_MS + 5)

    assert (closed, woken) == (True, [("prj", 1, NOW_MS + 5)])
    assert again == (False, [])
    assert waiting(database) == {
        "exe_held": NOW_MS + 5,
        "exe_elsewhere": NOW_MS,
        "exe_later": FIRST.until_ms + 1,
        "exe_other": FIRST.until_ms,
    }


async def test_what_is_in_order_waits_behind_the_one_that_is_put_off(database: Database) -> None:
    """In the same transaction: nobody may run the second one meanwhile."""
    async with journal_of(database) as journal:
        rows = [
            queued("exe_first", node_id="me", lane="o:1"),
            queued("exe_second", node_id="me", lane="o:1"),
            queued("exe_other", node_id="me", lane="o:2"),
        ]
        await journal.run(insert_rows, rows)

        await journal.run(store.put_off_runs, "me", ["exe_first"], NOW_MS + 5, "o:1")

    owners = select(run_queue.c.id, run_queue.c.node_id)
    found = database.read_here(
        lambda connection: [tuple(row) for row in connection.execute(owners)]
    )
    assert dict(found) == {"exe_first": None, "exe_second": PARKED, "exe_other": "me"}


async def test_a_deployment_forgets_what_its_versions_did_not_do(database: Database) -> None:
    """A version that stays live keeps its breaker; one that goes, or comes back, has none."""
    async with journal_of(database) as journal:
        await journal.run(store.open_breaker, FIRST)
        await journal.run(store.open_breaker, replace(FIRST, id="brk_2", version_id="v2"))

        await journal.run(store.forget_replaced, "fn", ["v1"], NOW_MS)

    assert [one.id for one in await database.read(store.all_breakers)] == ["brk_1"]


async def test_what_one_node_holds_back_all_do(postgres: Postgres, tmp_path: Path) -> None:
    """The other node learns of it within a second or two; closing on either is closing on both."""
    with postgres.database() as url:
        first, second = (
            Settings(data_dir=tmp_path / name, warm_cells=1, database_url=url)
            for name in ("first", "second")
        )
        async with open_platform(first) as one, open_platform(second) as other:
            assert one.new_admin_key is not None
            async with _client(one) as here, _client(other) as there:
                callers = [Caller(http, one.new_admin_key) for http in (here, there)]
                body = {"name": "f", "source": KILLS, "limits": {"cpu_ms": 50}}
                await callers[0].ok("POST", "/v1/functions", body)
                for _ in range(HARM_MAX):
                    await callers[0].refused(502, "POST", "/v1/functions/f/invoke", "kill")

                for caller in callers:
                    await _until(caller, 503)
                (breaker,) = await callers[1].items("/v1/breakers")
                await callers[1].ok("POST", f"/v1/breakers/{breaker['id']}/close")
                for caller in callers:
                    await _until(caller, 200)


def _client(platform: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(platform.asgi(), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://engine")


async def _until(caller: Caller, status: int) -> None:
    async with asyncio.timeout(10):
        while True:
            answer = await caller.call("POST", "/v1/functions/f/invoke", "fine")
            if answer.status_code == status:
                return
            await asyncio.sleep(0.05)
