"""What tests of the outbox share: a database with a project, a clock by hand, and a receiver."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from random import Random
from typing import Any

import msgspec
from sqlalchemy import select

from engine.egress import Egress
from engine.ids import new_id
from engine.outbox import Outbox
from engine.store import deliveries as store
from engine.store import delivery_views as views
from engine.store import nodes, vaulted
from engine.store.database import Database
from engine.store.deliveries import Attempt
from engine.store.delivery_actions import Acted, Action, act
from engine.store.delivery_views import Delivery
from engine.store.journal import Commit, Journal
from engine.store.tables import deliveries, projects
from engine.vault import Vault, connection_context, delivery_context
from tests.standins.http_server import HttpServer, Received, answer, http_server

NOW = 1_700_000_000_000
PROJECT = "prj_1"
WAIT_S = 20
Change = Callable[..., Any]


@dataclass
class ManualClock:
    now_ms: int = NOW

    def __call__(self) -> int:
        return self.now_ms


@dataclass
class World:
    """A database with a project, and outboxes that have not started."""

    database: Database
    journal: Journal
    egress: Egress
    vault: Vault = field(default_factory=lambda: Vault(bytes(32)))
    clock: ManualClock = field(default_factory=ManualClock)

    def outbox(self, journal: Journal | None = None, **more: Any) -> Outbox:
        """Return one that has all deliveries, or with a `node`'s journal, that node's."""
        journal = journal or self.journal
        return Outbox(
            self.database,
            journal,
            self.vault,
            self.egress,
            **{"clock": self.clock, "rng": Random(1), "node": lambda: journal.node_id, **more},
        )

    @asynccontextmanager
    async def node(self, node_id: str) -> AsyncIterator[Journal]:
        """A journal that writes in the name of a node that is registered."""
        journal = Journal(self.database)
        new = nodes.NewNode(id=node_id, kind="serve", host="h", pid=1, release="1", now_ms=NOW)
        await journal.run(nodes.register, new)
        journal.node_id = node_id
        yield journal
        await journal.close()

    async def connect(
        self, name: str, kind: str, credentials: dict[str, Any], **settings: Any
    ) -> None:
        sealed = self.vault.seal(
            msgspec.json.encode(credentials), context=connection_context(PROJECT, name)
        )
        await self.journal.run(
            vaulted.put_connection,
            project_id=PROJECT,
            name=name,
            kind=kind,
            sealed=sealed,
            settings=msgspec.json.encode(settings).decode(),
            now_ms=NOW,
        )

    async def queue(
        self,
        name: str,
        count: int = 1,
        kind: str = "slack",
        *,
        to: str | Sequence[str] | None = None,
        node_id: str | None = None,
        credentials: dict[str, Any] | None = None,
    ) -> list[str]:
        """Commit `count` deliveries as a run would; `to`: their recipient, or one for each."""
        commit = Commit()
        ids = sorted((new_id("dlv") for _ in range(count)), key=_as_a_digest)
        execution_id = new_id("exe")
        for position, delivery_id in enumerate(ids):
            sealed = None
            if credentials is not None:
                context = delivery_context(PROJECT, delivery_id)
                sealed = self.vault.seal(msgspec.json.encode(credentials), context=context)
            row = store.delivery_row(
                delivery_id=delivery_id,
                project_id=PROJECT,
                execution_id=execution_id,
                position=position,
                connection=name,
                kind=kind,
                payload=f'{{"text":"{name} {position}"}}',
                recipient=(whom := to if isinstance(to, str) or to is None else to[position]),
                line=whom,
                sealed=sealed,
                now_ms=self.clock.now_ms,
                node_id=node_id,
            )
            commit.insert(deliveries, row)
        await self.journal.commit(commit)
        return ids

    async def look(self, delivery_id: str) -> tuple[Delivery, list[Attempt]]:
        delivery, _, attempts = await self.database.read(views.get, PROJECT, delivery_id)
        return delivery, attempts

    async def act(self, action: Action, *ids: str, node_id: str | None = None) -> Acted:
        """Do what people do by hand; tell the outbox."""
        acted: Acted = await self.journal.run(
            act, PROJECT, list(ids), action, now_ms=self.clock.now_ms, node_id=node_id
        )
        return acted

    async def rows(self, column: str, *ids: str) -> list[Any]:
        """Return a column of these deliveries, in their order."""
        query = select(deliveries.c.id, deliveries.c[column]).where(deliveries.c.id.in_(ids))
        found = await self.database.read(
            lambda connection: {row[0]: row[1] for row in connection.execute(query)}
        )
        return [found[delivery_id] for delivery_id in ids]

    async def states(self) -> set[str]:
        query = select(deliveries.c.state).distinct()
        return set(
            await self.database.read(lambda connection: list(connection.execute(query).scalars()))
        )

    async def pass_ms(self, ms: int, *outboxes: Outbox) -> None:
        """Let time pass, and let these do what is due then."""
        self.clock.now_ms += ms
        for outbox in outboxes:
            await outbox.drain()


@asynccontextmanager
async def opened_world(database_url: str) -> AsyncIterator[World]:
    database = Database(database_url)
    database.migrate()
    journal = Journal(database)
    egress = Egress([ip_network("127.0.0.0/8")])
    commit = Commit()
    commit.insert(projects, (PROJECT, "one", NOW, "standard", "{}"))
    await journal.commit(commit)
    yield World(database, journal, egress)
    await egress.close()
    await journal.close()
    database.close()


@asynccontextmanager
async def started(*outboxes: Outbox) -> AsyncIterator[Outbox]:
    async with asyncio.timeout(WAIT_S), AsyncExitStack() as stack:
        for outbox in outboxes:
            await outbox.start()
            stack.push_async_callback(outbox.close)
        yield outboxes[0]


@dataclass
class Receiver:
    """A receiver of webhooks that answers as it is told, and keeps what came, and when."""

    server: HttpServer
    clock: ManualClock
    answers: list[bytes | None] = field(default_factory=list)  # for the next ones, one each
    usual: bytes | None = field(default_factory=answer)  # for all others; None: drops them
    ids: list[str] = field(default_factory=list)  # of what it took
    asked: list[tuple[str, int]] = field(default_factory=list)  # all: the delivery, and when
    on_ask: Callable[[str], Awaitable[None]] | None = None

    @property
    def credentials(self) -> dict[str, str]:
        return {"url": self.server.url}

    async def respond(self, received: Received) -> bytes | None:
        delivery_id = received.headers["webhook-id"]
        self.asked.append((delivery_id, self.clock.now_ms))
        if self.on_ask is not None:
            await self.on_ask(delivery_id)
        said = self.answers.pop(0) if self.answers else self.usual
        if said is not None and said.startswith(b"HTTP/1.1 2"):
            self.ids.append(delivery_id)
        return said


@asynccontextmanager
async def receiver(clock: ManualClock) -> AsyncIterator[Receiver]:
    found: list[Receiver] = []

    async def respond(received: Received) -> bytes | None:
        return await found[0].respond(received)

    async with http_server(respond) as server:
        found.append(Receiver(server, clock))
        yield found[0]


def _as_a_digest(delivery_id: str) -> str:
    """Return what orders ids by chance, as those of one run are: see engine.intents."""
    return delivery_id[::-1]
