"""The master key is changed on each kind of database: all opens, before, meanwhile and after."""

import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import SecretStr
from sqlalchemy import insert, select

from engine import rotation
from engine.master_keys import Mark, read_key_file
from engine.rotation import Phase, Progress, Rotation
from engine.settings import Settings
from engine.store import sealed, vaulted
from engine.store.database import Database
from engine.store.functions import Function, Version, insert_function, insert_version
from engine.store.journal import Journal
from engine.store.nodes import NewNode, beat, register
from engine.store.tables import artifacts, deliveries, idempotency_keys, projects
from engine.vault import SealBroken, Vault, answer_context, artifact_context, delivery_context

NOW = 1_700_000_000_000
PROJECT = "prj_1"
OLD, NEW = bytes(range(32)), bytes(range(32, 64))
EACH = 3


def in_base64(key: bytes) -> SecretStr:
    return SecretStr(base64.b64encode(key).decode())


@dataclass
class World:
    """A database, and vaults with the keys of a directory."""

    database: Database
    journal: Journal
    data_dir: Path

    @property
    def key_file(self) -> Path:
        return self.data_dir / "master.key"

    def vault(self, **settings: Any) -> Vault:
        return Vault.from_settings(Settings(data_dir=self.data_dir, **settings))

    def rotation(self, vault: Vault) -> Rotation:
        return Rotation(vault, self.database, self.journal)

    async def fill(self, vault: Vault) -> int:
        """Store sealed values of every kind; return how many."""

        def change(connection: Any) -> None:
            named = {"project_id": PROJECT, "now_ms": NOW}
            for number in range(EACH):
                name, dlv, ver = f"S{number}", f"dlv_{number}", f"ver_{number}"
                value = vault.seal(b"v", context=f"{PROJECT}/secret/{name}")
                vaulted.put_secret(connection, name=name, sealed=value, **named)
                value = vault.seal(b"v", context=f"{PROJECT}/connection/{name}")
                vaulted.put_connection(
                    connection, name=name, kind="slack", settings="{}", sealed=value, **named
                )
                row = {
                    "id": dlv, "project_id": PROJECT, "execution_id": "exe_1", "position": number,
                    "connection": "inline:slack:0", "kind": "slack", "payload": "{}",
                    "state": "queued", "attempts": 0, "next_ms": 0, "created_ms": NOW,
                }  # fmt: skip
                value = vault.seal(b"v", context=delivery_context(PROJECT, dlv))
                connection.execute(insert(deliveries).values(sealed=value, **row))
                row |= {"id": f"{dlv}x", "position": number + EACH}
                connection.execute(insert(deliveries).values(row))  # through a stored connection
                row = {
                    "project_id": PROJECT, "key": name, "request": "", "state": "answered",
                    "created_ms": NOW, "status": 200,
                }  # fmt: skip
                value = vault.seal(b"v", context=answer_context(PROJECT, name))
                connection.execute(insert(idempotency_keys).values(answer=value, **row))
                _insert_version(connection, ver, number)
                row = {"version_id": ver, "fingerprint": "f", "created_ms": NOW}
                value = vault.seal(bytes(2**20), context=artifact_context(PROJECT, ver, "f"))
                connection.execute(insert(artifacts).values(sealed=value, **row))

        await self.journal.run(change)
        return EACH * len(sealed.PLACES)

    async def opened(self, vault: Vault) -> int:
        """Return how many of all sealed values open; each must."""
        found = 0
        for place in sealed.PLACES:
            after, more = (), True
            while more:
                rows, more = await self.database.read(sealed.page, place, after)
                for row in rows:
                    vault.open(row.sealed, context=rotation._CONTEXTS[place](*row.context))
                    after, found = row.key, found + 1
        return found

    async def run(self, vault: Vault, **how: Any) -> list[Progress]:
        """Change the key; after each step a process that starts then opens everything."""
        changing = self.rotation(vault)
        said = [await changing.step(begin=True, **how)]
        while said[-1].phase is not Phase.DONE:
            assert not said[-1].waits_for
            assert await self.opened(self.vault()) == EACH * len(sealed.PLACES)
            said.append(await changing.step(begin=False, **how))
        return said


def _insert_version(connection: Any, ver: str, number: int) -> None:
    if number == 0:
        made = Function(id="fn_1", project_id=PROJECT, name="f", runtime="wasm", created_ms=NOW)
        insert_function(connection, made)
    version = Version(
        id=ver, function_id="fn_1", number=number + 1, handlers=("job",), limits={},
        allowed_hosts=(), variables={}, secrets=(), message="", created_ms=NOW, options={},
        wasm=None, files={}, main="", program="",
    )  # fmt: skip
    insert_version(connection, version)


@pytest.fixture
async def world(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """On each kind of database."""
    database = Database(database_url)
    database.migrate()
    journal = Journal(database)
    row = {"id": PROJECT, "name": "one", "created_ms": NOW}
    await journal.run(lambda connection: connection.execute(insert(projects).values(row)))
    yield World(database, journal, tmp_path / "data")
    await journal.close()
    database.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step does one page, and waits for no node."""
    monkeypatch.setattr(rotation, "STEP_S", 0.0)
    monkeypatch.setattr(rotation, "NODES_S", 0.0)


async def test_a_key_of_a_file_is_changed(world: World) -> None:
    """All is sealed anew; the file has the new key alone; what is running needs no restart."""
    running = world.vault()
    count = await world.fill(running)
    old = world.key_file.read_text()

    said = await world.run(running)

    assert [one.phase for one in said][:2] == [Phase.ACCEPT, Phase.SWITCH]
    assert said[-1].phase is Phase.DONE
    assert (said[-1].resealed, said[-1].checked, said[-1].unreadable) == (count, count, ())
    assert len(read_key_file(world.key_file)) == 1
    assert world.key_file.read_text() != old
    assert world.key_file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in world.data_dir.iterdir()] == ["master.key"]
    assert await world.opened(running) == count
    with pytest.raises(SealBroken):
        await world.opened(Vault(base64.b64decode(old)))


async def test_each_step_may_be_done_by_another_process(world: World, quick: None) -> None:
    """Nothing of it is in memory alone; a key once begun is the one that it ends with."""
    del quick
    await world.fill(world.vault())
    keys: list[str] = []

    for _ in range(5):  # accept, switch, and a pass that is forgotten each time
        done = await world.rotation(world.vault()).step(begin=True)
        keys.append(done.key)
    said = await world.run(world.vault())

    assert said[-1].phase is Phase.DONE
    assert said[-1].key == keys[-1] != keys[0]
    assert len(read_key_file(world.key_file)) == 1


async def test_the_old_key_may_be_kept(world: World) -> None:
    """For old backups: it opens, it seals nothing, and the next change does not stumble over it."""
    vault = world.vault()
    await world.fill(vault)
    before = vault.seal(b"backup", context="c")

    await world.run(vault, keep_old=True)
    await world.run(vault)

    first, kept = read_key_file(world.key_file)
    assert (first.mark, kept.mark) == (None, Mark.KEPT)
    assert world.vault().open(before, context="c") == b"backup"


async def test_what_was_stored_meanwhile_is_not_replaced(world: World) -> None:
    """A value that was put after the page was read stays: the page is void for it."""
    vault = world.vault()
    await world.fill(vault)
    rows, _ = await world.database.read(sealed.page, "secrets", ())
    put = vault.seal(b"newer", context=f"{PROJECT}/secret/S1")
    await world.journal.run(
        vaulted.put_secret, project_id=PROJECT, name="S1", sealed=put, now_ms=NOW
    )

    changed = [(row, vault.seal(b"older", context="c")) for row in rows]
    swapped = await world.journal.run(sealed.swap, "secrets", changed)

    found = await world.database.read(vaulted.get_secrets, PROJECT, ["S1"])
    assert swapped == EACH - 1
    assert found["S1"].sealed == put


async def test_a_value_sealed_with_the_old_key_late_is_found(world: World, quick: None) -> None:
    """The second pass sees it: the old key goes only after a pass that had nothing to do."""
    del quick
    vault = world.vault()
    await world.fill(vault)
    stored = False

    async def store() -> None:
        await world.journal.run(
            vaulted.put_secret, project_id=PROJECT, name="S0", sealed=late, now_ms=NOW
        )

    late = vault.seal(b"late", context=f"{PROJECT}/secret/S0")
    changing, phases = world.rotation(vault), []
    for _ in range(200):
        done = await changing.step(begin=not phases)
        phases.append(done.phase)
        if done.phase is Phase.RESEAL and done.checked > EACH and not stored:
            await store()  # behind where the first pass is
            stored = True
        if done.phase is Phase.DONE:
            break

    found = await world.database.read(vaulted.get_secrets, PROJECT, ["S0"])
    alone = Vault(read_key_file(world.key_file)[0].key)
    assert stored
    assert phases.count(Phase.VERIFY) > len(sealed.PLACES)
    assert alone.open(found["S0"].sealed, context=f"{PROJECT}/secret/S0") == b"late"


async def test_other_nodes_are_waited_for(world: World, quick: None) -> None:
    """No node seals with a key before all can open with it; no key goes that a node seals with."""
    del quick
    vault = world.vault()
    await world.fill(vault)
    node = NewNode(id="node_2", kind="worker", host="b", pid=1, release="1", now_ms=NOW)
    await world.journal.run(register, node)

    async def has(*keys: str) -> None:
        state = msgspec.json.encode({"keys": keys}).decode()
        await world.journal.run(beat, "node_2", state, NOW)

    changing = world.rotation(vault)
    old = vault.key_ids()[0]
    accepted = await changing.step(begin=True)
    waits = await changing.step(begin=False)
    sealing = vault.key_ids()[0]
    new = accepted.others[0]
    await has(old, new)
    switched = await changing.step(begin=False)
    lags = await changing.step(begin=False)
    await has(new, old)
    goes_on = await changing.step(begin=False)

    assert accepted.phase is Phase.ACCEPT
    assert (waits.phase, sealing) == (Phase.ACCEPT, old)
    assert waits.waits_for == ("node_2 (worker on b, release 1)",)
    assert str(world.key_file) in waits.note
    assert (switched.phase, switched.key) == (Phase.SWITCH, new)
    assert (lags.phase, len(lags.waits_for)) == (Phase.SWITCH, 1)
    assert goes_on.phase is Phase.RESEAL


async def test_a_value_that_nothing_opens_is_told(world: World) -> None:
    """It was unreadable before, and does not hold the others up."""
    vault = world.vault()
    await world.fill(vault)
    foreign = Vault(bytes(32)).seal(b"x", context=f"{PROJECT}/secret/X")
    await world.journal.run(
        vaulted.put_secret, project_id=PROJECT, name="X", sealed=foreign, now_ms=NOW
    )
    changing = world.rotation(vault)

    done = await changing.step(begin=True)
    while done.phase is not Phase.DONE:
        done = await changing.step(begin=False)

    assert done.unreadable == (f"secrets {PROJECT} X",)


async def test_a_key_of_the_settings_is_changed_in_three_steps(world: World) -> None:
    """Accept both, exchange them, seal anew: each node opens everything all the time."""
    first = world.vault(master_key=in_base64(OLD))
    count = await world.fill(first)

    alone = await world.rotation(first).step(begin=True)
    accepting = world.vault(master_key=in_base64(OLD), master_key_old=in_base64(NEW))
    accepted = await world.rotation(accepting).step(begin=True)
    switched = world.vault(master_key=in_base64(NEW), master_key_old=in_base64(OLD))
    assert await world.opened(accepting) == await world.opened(switched) == count
    changing = world.rotation(switched)
    done = await changing.step(begin=True)
    while done.phase is not Phase.DONE:
        done = await changing.step(begin=False)

    assert alone.phase is accepted.phase is Phase.DONE
    assert "CLOUDCODE_MASTER_KEY_OLD" in alone.note
    assert "exchange" in accepted.note
    assert done.resealed == count
    assert "remove it from every node" in done.note
    assert await world.opened(world.vault(master_key=in_base64(NEW))) == count
    assert not world.key_file.exists()


async def test_the_key_of_a_file_moves_into_the_settings(world: World) -> None:
    """The old file's key is given as an old one; after it the file is not needed."""
    count = await world.fill(world.vault())
    text = SecretStr(world.key_file.read_text().strip())
    moved = world.vault(master_key=in_base64(NEW), master_key_old=text)

    assert await world.opened(moved) == count
    changing = world.rotation(moved)
    done = await changing.step(begin=True)
    while done.phase is not Phase.DONE:
        done = await changing.step(begin=False)

    assert await world.opened(world.vault(master_key=in_base64(NEW))) == count


async def test_rows_without_a_sealed_value_are_passed_over(world: World) -> None:
    """Deliveries through stored connections have none; they are as they were."""
    vault = world.vault()
    await world.fill(vault)

    await world.run(vault)

    query = select(deliveries.c.id).where(deliveries.c.sealed.is_(None))
    found = await world.database.read(lambda one: one.execute(query).scalars().all())
    assert len(found) == EACH
