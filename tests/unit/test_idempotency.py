"""Keys of requests that are sent again: who may carry one out, on two nodes of one database."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest
import pytest_asyncio
from sqlalchemy import Connection, delete, insert, select, update

from engine.errors import Invalid, NotFound
from engine.idempotency import (
    KEPT_MS,
    Answer,
    AnswerLost,
    Claim,
    Idempotency,
    KeyBusy,
    KeyMismatch,
    check_key,
    fingerprint,
)
from engine.store.database import Database
from engine.store.journal import Commit, Journal
from engine.store.nodes import NewNode, register
from engine.store.tables import idempotency_keys, nodes, projects
from engine.vault import Vault

DEVELOP = frozenset({"develop"})


class Node:
    """One process on the database, as far as keys are concerned."""

    def __init__(self, database: Database, clock: Callable[[], int], vault: Vault) -> None:
        self.journal = Journal(database)
        self.keys = Idempotency(self.journal, vault, clock)

    async def be_born(self, node_id: str) -> None:
        node = NewNode(id=node_id, kind="serve", host="h", pid=1, release="r", now_ms=1)
        await self.journal.run(register, node)
        self.journal.node_id = node_id

    async def claim(self, key: str = "k", request: str = "r", **options: str) -> Claim | Answer:
        return await self.keys.claim(key, request, project_id="prj_1", scopes=DEVELOP, **options)

    async def claimed(self, key: str = "k", request: str = "r", **options: str) -> Claim:
        found = await self.claim(key, request, **options)
        assert isinstance(found, Claim)
        return found


@dataclass
class Stage:
    database: Database
    one: Node
    other: Node
    now_ms: int = 1_000_000

    async def die(self, node_id: str) -> None:
        await self.other.journal.run(_remove_node, node_id)

    async def row(self) -> tuple[str, str | None] | None:
        found = await self.database.read(_rows)
        return found[0] if found else None

    async def projects(self) -> list[str]:
        return await self.database.read(_projects)


@pytest_asyncio.fixture
async def stage(database_url: str) -> AsyncIterator[Stage]:
    database = Database(database_url)
    database.migrate()
    vault = Vault(b"k" * 32)
    made: list[Stage] = []

    def clock() -> int:
        return made[0].now_ms

    made.append(Stage(database, Node(database, clock, vault), Node(database, clock, vault)))
    await made[0].one.be_born("node_1")
    await made[0].other.be_born("node_2")
    yield made[0]
    await made[0].one.journal.close()
    await made[0].other.journal.close()
    database.close()


def add_project(connection: Connection, name: str = "p") -> None:
    connection.execute(insert(projects).values(id=name, name=name, created_ms=1))


async def work(node: Node, claim: Claim, name: str = "p") -> None:
    with claim.stamping():
        await node.journal.run(add_project, name)


async def settle(claim: Claim, status: int = 201, **options: bool) -> None:
    headers = [(b"location", b"/x"), (b"content-length", b"2"), (b"x-request-id", b"req")]
    await claim.settle(status, headers, b"\x00\xff", **options)


async def test_an_answer_is_given_again(stage: Stage) -> None:
    """Status, headers and body, on any node; what is of one transmission is not kept."""
    claim = await stage.one.claimed()
    await work(stage.one, claim)
    await settle(claim)

    again = await stage.other.claim()

    assert again == Answer(
        status=201, headers=((b"location", b"/x"),), body=b"\x00\xff", scopes=DEVELOP
    )
    assert await stage.row() == ("answered", None)


async def test_an_answer_is_sealed_and_bound_to_its_key(stage: Stage) -> None:
    """It may show an API key: who reads the database, or swaps its rows, learns nothing."""
    for key in ("a", "b"):
        claim = await stage.one.claimed(key)
        await claim.settle(201, (), b"cck_secret of " + key.encode())
    rows = dict(await stage.database.read(_answers))

    await stage.one.journal.run(_put_answer, "a", rows["b"])

    assert b"cck_secret" not in rows["a"]
    with pytest.raises(AnswerLost):
        await stage.one.claim("a")


async def test_another_request_with_the_key_is_refused(stage: Stage) -> None:
    """Also while the first is carried out by another node."""
    claim = await stage.one.claimed(request="first")

    with pytest.raises(KeyMismatch):
        await stage.other.claim(request="second")
    await settle(claim)
    with pytest.raises(KeyMismatch):
        await stage.one.claim(request="second")


async def test_keys_of_devices_are_their_own(stage: Stage) -> None:
    """A device, another device and the project may use the same key."""
    for of in ("", "dev_1", "dev_2"):
        await settle(await stage.one.claimed(request=of, of=of))

    with pytest.raises(KeyMismatch):
        await stage.one.claim(request="", of="dev_1")


async def test_of_many_at_once_one_is_carried_out(stage: Stage) -> None:
    """Twenty on two nodes: one has the key, the others are told to come again."""
    nodes_by_turn = [stage.one, stage.other] * 10

    found = await asyncio.gather(*(node.claim() for node in nodes_by_turn), return_exceptions=True)

    assert sum(isinstance(one, Claim) for one in found) == 1
    assert sum(isinstance(one, KeyBusy) for one in found) == 19


async def test_a_refused_request_leaves_the_key_free(stage: Stage) -> None:
    """Nothing was begun: the corrected request may have the key."""
    await settle(await stage.one.claimed(request="wrong"), status=422)

    assert isinstance(await stage.other.claim(request="right"), Claim)


async def test_an_error_that_the_work_ended_with_is_an_answer(stage: Stage) -> None:
    """A function that failed has run: it does not run again for the same key."""
    await settle(await stage.one.claimed(), status=502, work_done=True)

    again = await stage.other.claim()

    assert isinstance(again, Answer)
    assert again.status == 502


async def test_a_change_that_failed_leaves_the_key_free(stage: Stage) -> None:
    """The key is applied with the change, so it is not without it."""
    claim = await stage.one.claimed()

    def fail(_connection: Connection) -> None:
        raise NotFound("thing", "x")

    with claim.stamping(), pytest.raises(NotFound):
        await stage.one.journal.run(fail)
    row = await stage.row()
    await settle(claim, status=404)

    assert row == ("running", "node_1")
    assert isinstance(await stage.other.claim(), Claim)


async def test_a_barrier_applies_nothing(stage: Stage) -> None:
    """A request that has only waited for the journal has done nothing yet."""
    claim = await stage.one.claimed()

    with claim.stamping():
        await stage.one.journal.barrier()

    assert await stage.row() == ("running", "node_1")


async def test_only_commits_of_the_request_apply_its_key(stage: Stage) -> None:
    """A task that the request started has its context, and may outlive it: its commits are not it.

    A cell that was started for one request answers many others in that context.
    """
    claim = await stage.one.claimed()

    with claim.stamping():
        await asyncio.create_task(stage.one.journal.run(add_project, "of another"))
        row = await stage.row()
        await stage.one.journal.run(add_project, "its own")

    assert row == ("running", "node_1")
    assert await stage.row() == ("applied", "node_1")


async def test_a_key_of_a_dead_node_that_had_done_nothing_is_taken_over(stage: Stage) -> None:
    """As long as the node lives the key is busy; the dead node's late commit is void."""
    claim = await stage.one.claimed()
    with pytest.raises(KeyBusy):
        await stage.other.claim()
    await stage.die("node_1")

    taken = await stage.other.claimed()
    with pytest.raises(KeyBusy):
        await work(stage.one, claim, "too late")
    claim.end()
    await work(stage.other, taken, "in time")
    await settle(taken)

    assert await stage.projects() == ["in time"]
    assert isinstance(await stage.one.claim(), Answer)


async def test_what_was_applied_by_a_dead_node_is_not_done_again(stage: Stage) -> None:
    """Its answer is lost, and the caller is told so, each time."""
    claim = await stage.one.claimed()
    await work(stage.one, claim)
    with pytest.raises(KeyBusy):
        await stage.other.claim()
    await stage.die("node_1")

    for _ in range(2):
        with pytest.raises(AnswerLost):
            await stage.other.claim()

    assert await stage.projects() == ["p"]


async def test_an_error_after_the_change_is_a_lost_answer(stage: Stage) -> None:
    """What was done stays done; no node waits for the one that failed."""
    claim = await stage.one.claimed()
    await work(stage.one, claim)

    await settle(claim, status=500)

    for node in (stage.one, stage.other):
        with pytest.raises(AnswerLost):
            await node.claim()


async def test_a_request_that_was_cut_off_leaves_its_key_to_the_next(stage: Stage) -> None:
    """This process knows that it does not work on it any more, though its node lives."""
    busy = asyncio.create_task(stage.one.claim())
    await asyncio.sleep(0)
    busy.cancel()

    with pytest.raises(asyncio.CancelledError):
        await busy

    assert isinstance(await stage.one.claim(), Claim)


async def test_what_is_known_before_is_answered_in_the_same_transaction(stage: Stage) -> None:
    """There is no moment at which the change is there and its answer is not."""
    claim = await stage.one.claimed()
    commit = Commit()
    commit.insert(projects, ("p", "p", 1, "standard", "{}"))
    claim.answer_with(commit, 202, [(b"location", b"/y")], b"{}")

    await stage.one.journal.commit(commit)
    await stage.die("node_1")
    again = await stage.other.claim()

    assert isinstance(again, Answer)
    assert (again.status, again.headers, again.body) == (202, ((b"location", b"/y"),), b"{}")


async def test_a_key_is_free_after_a_day(stage: Stage) -> None:
    """Not before; whatever it was used for."""
    await settle(await stage.one.claimed())
    stage.now_ms += KEPT_MS
    last = await stage.one.claim()

    stage.now_ms += 1

    assert isinstance(last, Answer)
    assert isinstance(await stage.one.claim(request="another"), Claim)


@pytest.mark.parametrize("key", ["", "a b", "ü", "a\tb", "a\x7f", "a" * 256])
def test_a_key_that_is_none_is_refused(key: str) -> None:
    """1 to 255 visible ASCII characters."""
    with pytest.raises(Invalid):
        check_key(key)


def test_a_key_may_be_anything_visible() -> None:
    """A structured header's quotes, too."""
    for key in ("!", "~" * 255, '"8e03978e-40d5-43dd-bc93-6894a57f9324"'):
        assert check_key(key) == key


def test_requests_that_differ_have_different_fingerprints() -> None:
    """Method, path, query and body: no part can pass for a piece of another."""
    requests = [
        ("POST", "/a", b"", b""),
        ("PUT", "/a", b"", b""),
        ("POST", "/b", b"", b""),
        ("POST", "/a", b"x", b""),
        ("POST", "/a", b"", b"x"),
        ("POST", "/a", b"", b"1\nx"),
        ("POST", "/a\n1", b"x", b""),
        ("POST", "/ü", b"", b""),
    ]

    assert len({fingerprint(*one) for one in requests}) == len(requests)


def _remove_node(connection: Connection, node_id: str) -> None:
    connection.execute(delete(nodes).where(nodes.c.id == node_id))


def _rows(connection: Connection) -> list[tuple[str, str | None]]:
    query = select(idempotency_keys.c.state, idempotency_keys.c.node_id)
    return [(row.state, row.node_id) for row in connection.execute(query)]


def _answers(connection: Connection) -> list[tuple[str, bytes]]:
    query = select(idempotency_keys.c.key, idempotency_keys.c.answer)
    return [(row.key, row.answer) for row in connection.execute(query)]


def _put_answer(connection: Connection, key: str, sealed: bytes) -> None:
    connection.execute(
        update(idempotency_keys).where(idempotency_keys.c.key == key).values(answer=sealed)
    )


def _projects(connection: Connection) -> list[str]:
    return list(connection.execute(select(projects.c.id).order_by(projects.c.id)).scalars())
