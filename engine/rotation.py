"""Changes the master key while the engine runs: a new one, all sealed anew, the old one gone.

Path:   api.master_key -> `Rotation.step`, again and again -> key file, vault, store.sealed
Never:  lets a node seal with a key that another one cannot open with; gives a key up before all
        that is stored has been seen to open without it.

All that is known is in the key file and the database: killed at any moment, the next step goes on.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from typing import Final

import msgspec
import structlog

from engine.errors import Conflict
from engine.master_keys import Mark, MasterKey, Ring, replace_key_file
from engine.store import sealed as store
from engine.store.database import Database
from engine.store.journal import Journal
from engine.store.nodes_view import NodeRow, list_nodes
from engine.store.sealed import PLACES, Sealed
from engine.vault import (
    SealBroken,
    Vault,
    answer_context,
    artifact_context,
    connection_context,
    delivery_context,
    secret_context,
)

STEP_S: Final = 2.0  # of work in one step
NODES_S: Final = 5.0  # one step waits for other nodes; they say what they have a few times a lease
LOOK_S: Final = 0.25
UNREADABLE_SHOWN: Final = 5
_CONTEXTS: Final[Mapping[str, Callable[..., str]]] = {
    "secrets": secret_context,
    "connections": connection_context,
    "deliveries": delivery_context,
    "idempotency_keys": answer_context,
    "artifacts": artifact_context,
}
assert set(_CONTEXTS) == set(PLACES)
_log = structlog.get_logger()


class Phase(StrEnum):
    """How far it is."""

    ACCEPT = "accept"  # every node learns the new key; all seal with the old one
    SWITCH = "switch"  # every node seals with the new one
    RESEAL = "reseal"  # what is stored is sealed anew
    VERIFY = "verify"  # ... and looked at once more
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What one step has come to."""

    phase: Phase
    key: str  # the id of the key that seals
    others: tuple[str, ...] = ()  # ids of those that only open
    waits_for: tuple[str, ...] = ()  # nodes that do not have the keys yet
    checked: int = 0  # values of this pass
    total: int = 0
    resealed: int = 0  # by this process, of this key
    unreadable: tuple[str, ...] = ()  # values that no key opens, nor did before
    note: str = ""  # what to do next, where that is not to go on


@dataclass(slots=True)
class _Pass:
    """One walk through all that is stored, with one key as the current one."""

    key: str
    verifies: bool = False
    place: int = 0
    after: tuple[str, ...] = ()
    checked: int = 0
    total: int = 0
    resealed: int = 0  # of the passes before, too
    changed: int = 0
    unreadable: list[str] = field(default_factory=list)


class Rotation:
    """The one of this process; steps come one after the other."""

    def __init__(self, vault: Vault, database: Database, journal: Journal) -> None:
        self._vault = vault
        self._database = database
        self._journal = journal
        self._pass: _Pass | None = None
        self._lock = asyncio.Lock()

    async def step(self, *, begin: bool, keep_old: bool = False) -> Progress:
        """Go on with the change of the key, for some seconds.

        Args:
            begin: make a new key if none is on its way; else the answer is `done`.
            keep_old: leave the old key in the file, to open old backups of the database.

        Raises:
            Conflict: the key file cannot be written.
        """
        async with self._lock:
            if self._vault.path is None:
                return await self._reseal(self._by_settings, begin=begin)
            ring = self._vault.ring()
            coming = _marked(ring, Mark.NEXT)
            if coming:
                return await self._switch(ring, coming[0])
            if _marked(ring, Mark.LEAVING):
                return await self._reseal(partial(self._drop, keep_old=keep_old), begin=begin)
            if not begin:
                return self._told(Phase.DONE)
            new = MasterKey(key=self._vault.new_key(), mark=Mark.NEXT)
            await self._write(ring, (ring[0], new, *ring[1:]))
            return self._told(Phase.ACCEPT)

    async def _switch(self, ring: Ring, new: MasterKey) -> Progress:
        """Let the new key seal as soon as every node can open with it."""
        lacking = await self._nodes_where(lambda ids: new.id not in ids)
        if lacking:
            return self._told(Phase.ACCEPT, lacking, self._copy_note())
        old = replace(ring[0], mark=Mark.LEAVING)
        rest = tuple(one for one in ring[1:] if one is not new)
        await self._write(ring, (replace(new, mark=None), old, *rest))
        return self._told(Phase.SWITCH)

    async def _reseal(self, finish: Callable[[], Awaitable[str]], *, begin: bool) -> Progress:
        """Seal everything with the current key, until a whole pass has found nothing to do."""
        current = self._vault.key_ids()[0]
        lagging = await self._nodes_where(lambda ids: ids[:1] != [current])
        if lagging:
            self._pass = None  # they may still seal with another key
            return self._told(Phase.SWITCH, lagging, self._copy_note())
        walk = self._pass
        if walk is None or walk.key != current or (begin and self._vault.path is None):
            await self._journal.barrier()  # what was sealed with the old key may be on its way
            walk = self._pass = _Pass(key=current, total=await self._total())
        ends_s = asyncio.get_running_loop().time() + STEP_S
        while walk.place < len(PLACES):
            await self._next_page(walk)
            if asyncio.get_running_loop().time() > ends_s and walk.place < len(PLACES):
                return self._of(walk)
        if walk.changed:
            self._pass = _Pass(
                key=current, verifies=True, total=await self._total(), resealed=walk.resealed
            )
            return self._of(self._pass)
        note = await finish()
        self._pass = None
        _log.info("all_is_sealed_with_one_key", key=current, resealed=walk.resealed)
        return self._of(walk, Phase.DONE, note)

    async def _next_page(self, walk: _Pass) -> None:
        place = PLACES[walk.place]
        found, more = await self._database.read(store.page, place, walk.after)
        changed, unreadable = await asyncio.to_thread(self._sealed_anew, place, found)
        if changed:
            swapped = await self._journal.run_alone(store.swap, place, changed)
            walk.resealed += swapped
            walk.changed += len(changed)
        walk.checked += len(found)
        walk.unreadable += unreadable
        walk.after = found[-1].key if found else ()
        if not more:
            walk.place, walk.after = walk.place + 1, ()

    def _sealed_anew(
        self, place: str, found: Sequence[Sealed]
    ) -> tuple[list[tuple[Sealed, bytes]], list[str]]:
        changed, unreadable = [], []
        for one in found:
            try:
                sealed = self._vault.renewed(one.sealed, context=_CONTEXTS[place](*one.context))
            except SealBroken:
                unreadable.append(f"{place} {' '.join(one.key)}")
                continue
            if sealed is not None:
                changed.append((one, sealed))
        return changed, unreadable

    async def _drop(self, *, keep_old: bool) -> str:
        """Take the old key out of the file: nothing needs it any more."""
        ring = self._vault.ring()
        kept = [
            replace(one, mark=Mark.KEPT) if one.mark is Mark.LEAVING else one
            for one in ring
            if one.mark is not Mark.LEAVING or keep_old
        ]
        await self._write(ring, tuple(kept))
        return (
            f"save {self._vault.path} with the next backup of the database: older backups open "
            "with the key of their time only"
        )

    async def _by_settings(self) -> str:
        others = self._vault.key_ids()[1:]
        if not others:
            return (
                "all is sealed with CLOUDCODE_MASTER_KEY. To change it: 1. add a new key as "
                "CLOUDCODE_MASTER_KEY_OLD on every node, and restart them one after the other; "
                "2. exchange the two, and restart them again; 3. run this again"
            )
        return (
            "all is sealed with CLOUDCODE_MASTER_KEY; nothing needs CLOUDCODE_MASTER_KEY_OLD. If "
            "that is the key before: remove it from every node. If it is the next one: exchange "
            "the two on every node, restart them one after the other, and run this again"
        )

    async def _write(self, before: Ring, after: Ring) -> None:
        assert self._vault.path is not None
        in_file = [
            tuple(one for one in ring if one.mark is not Mark.SETTINGS) for ring in (before, after)
        ]
        await asyncio.to_thread(replace_key_file, self._vault.path, *in_file)
        if self._vault.ring()[0].key != after[0].key:
            raise Conflict(f"{self._vault.path} was changed just now; try again")
        _log.info("master_keys_changed", keys=self._vault.key_ids())

    async def _nodes_where(self, lacks: Callable[[list[str]], bool]) -> tuple[str, ...]:
        """Return the other nodes whose keys `lacks` is true of; wait a moment for them to learn."""
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + NODES_S
        while True:
            rows = await self._database.read(list_nodes)
            others = [row for row in rows if row.id != self._journal.node_id]
            found = tuple(_shown(row) for row in others if lacks(_keys_of(row)))
            if not found or loop.time() > ends_s:
                return found
            await asyncio.sleep(LOOK_S)

    def _copy_note(self) -> str:
        if self._vault.path is None:
            return (
                "give these nodes the same CLOUDCODE_MASTER_KEY, with the old key in "
                "CLOUDCODE_MASTER_KEY_OLD, and restart them"
            )
        return (
            f"these nodes do not read {self._vault.path}: copy it over their key file (mode 0600); "
            "they notice it. A node with a key of its own cannot share secrets; one of an older "
            "release must be updated first"
        )

    async def _total(self) -> int:
        return sum([await self._database.read(store.count, place) for place in PLACES])

    def _of(self, walk: _Pass, phase: Phase | None = None, note: str = "") -> Progress:
        return replace(
            self._told(phase or (Phase.VERIFY if walk.verifies else Phase.RESEAL), note=note),
            checked=walk.checked,
            total=walk.total,
            resealed=walk.resealed,
            unreadable=tuple(walk.unreadable[:UNREADABLE_SHOWN]),
        )

    def _told(self, phase: Phase, waits_for: tuple[str, ...] = (), note: str = "") -> Progress:
        first, *others = self._vault.key_ids()
        return Progress(
            phase=phase, key=first, others=tuple(others), waits_for=waits_for, note=note
        )


def _marked(ring: Ring, mark: Mark) -> list[MasterKey]:
    return [one for one in ring if one.mark is mark]


def _keys_of(row: NodeRow) -> list[str]:
    """Return the ids of the keys that a node has said it has."""
    found = msgspec.json.decode(row.state).get("keys")
    return found if isinstance(found, list) else []


def _shown(row: NodeRow) -> str:
    return f"{row.id} ({row.kind} on {row.host}, release {row.release})"
