"""What the hot path must know without asking the database: keys, live versions, triggers, devices.

Path:   api, ingest, dispatch -> here; the control plane calls `*_changed` after each commit
Never:  is the truth: that is the store; a restart reads it all again.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from engine.allowances import Allowances, Effective, effective
from engine.clock import Clock
from engine.connectors import CONNECTORS
from engine.errors import NotFound
from engine.policies import NONE, Policy
from engine.quotas import limits_for
from engine.redaction import Redaction, redaction_of
from engine.store import live
from engine.store.database import Database
from engine.store.live import StoredDevice as Device
from engine.store.live import StoredKey as Key
from engine.store.live import StoredProject
from engine.store.live import StoredTrigger as Trigger
from engine.store.vaulted import StoredConnection, StoredSecret, may_use
from engine.vault import Vault, secret_context
from runtimes.contract import Limits, Runtime

DEVICES_KEPT: Final = 200_000  # about 600 bytes each; the oldest is forgotten first
__all__ = ["Catalogue", "Device", "Function", "Key", "Trigger", "Version"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundConnection:
    """A stored connection that a function may use; never its credentials."""

    kind: str
    settings: dict[str, Any]


@dataclass(slots=True, kw_only=True, eq=False)
class Version:
    """One live version with all it needs to run. A change of its bindings makes a new object."""

    id: str
    number: int
    function_id: str
    function: str
    project_id: str
    runtime: Runtime
    program: str  # JSON; wasm: empty, see engine.programs
    kind: str = ""  # wasm: command | core
    options: dict[str, Any] = field(default_factory=dict)  # wasm: of engine.bundles.WasmOptions
    handlers: tuple[str, ...]
    overrides: dict[str, int]
    allowed_hosts: tuple[str, ...]
    bindings: dict[str, Any] = field(repr=False)  # for the cell: holds secrets in the clear
    connections: dict[str, BoundConnection] = field(default_factory=dict)
    withheld: dict[str, str] = field(default_factory=dict)  # other connections, and their kinds
    redaction: Redaction | None = None  # of its secrets; None: it has none to hide
    policy: Policy = NONE  # what its queued runs keep to
    live: bool = True  # False: replaced by a newer object; runs that hold it may still end in it
    _limits: dict[str, Limits] = field(default_factory=dict, repr=False)

    def limits(self, handler: str) -> Limits:
        known = self._limits.get(handler)
        if known is None:
            known = self._limits[handler] = limits_for(handler, self.overrides)
        return known


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Function:
    id: str
    name: str
    project_id: str
    shares: tuple[tuple[int, Version], ...]  # (percent, version); percents sum to 100

    def choose(self, execution_id: str) -> Version:
        """Return the version that this execution runs: the same one at every attempt."""
        if len(self.shares) == 1:
            return self.shares[0][1]
        point = int(execution_id[-6:], 16) % 100
        for percent, version in self.shares:
            point -= percent
            if point < 0:
                return version
        return self.shares[-1][1]


class Catalogue:
    """In-memory view of one database."""

    def __init__(self, database: Database, vault: Vault, clock: Clock, allowed: Effective) -> None:
        """`allowed` is what holds for a project without allowances of its own."""
        self._database = database
        self._vault = vault
        self._clock = clock
        self._allowed = allowed
        self._projects: dict[str, str] = {}  # id or name -> id
        self._allowances: dict[str, Effective] = {}  # by project id; missing: the default
        self._hardened: frozenset[str] = frozenset()  # project ids
        self._keys: dict[str, Key] = {}
        self.rights_changed_count = 0  # of changes to keys and projects
        self._functions: dict[tuple[str, str], Function] = {}
        self._functions_by_id: dict[str, Function] = {}
        self._redactions: dict[str, Redaction | None] = {}  # of projects, as far as asked for
        self._triggers: dict[str, tuple[Trigger, ...]] = {}
        self._devices_changed_count = 0
        self._reading = asyncio.Lock()  # a slow old answer must not overwrite a newer one
        self.learn: Callable[[], Awaitable[bool]] = _nothing_new  # what other nodes have changed
        self.on_retired: Callable[[Version], None] = lambda _version: None
        self.on_isolation: Callable[[str], None] = lambda _project_id: None  # it has changed
        self._devices: dict[str, Device] = {}  # by id
        self._devices_by_token: dict[str, Device] = {}

    async def load(self) -> None:
        await self.projects_changed()
        await self.keys_changed()
        await self._load_functions(None)
        rows = await self._database.read(live.all_triggers)
        for product_id in {trigger.product_id for trigger in rows}:
            self._triggers[product_id] = _of_product(rows, product_id)

    async def reload(self) -> None:
        """Read everything again: what has changed meanwhile is not known."""
        await self.projects_changed()
        await self.keys_changed()
        async with self._reading:
            await self._load_functions(None)
            rows = await self._database.read(live.all_triggers)
            products = {trigger.product_id for trigger in rows}
            self._triggers = {one: _of_product(rows, one) for one in products}
            self._devices_changed_count += 1
            self._devices.clear()
            self._devices_by_token.clear()

    def project(self, name_or_id: str) -> str | None:
        """Return the project's id."""
        return self._projects.get(name_or_id)

    def allowances(self, project_id: str) -> Effective:
        """Return what the project may use."""
        return self._allowances.get(project_id, self._allowed)

    def hardened(self, project_id: str) -> bool:
        """Say whether the project's code runs without a compiler at run time, and slower."""
        return project_id in self._hardened

    def key(self, key_hash: str) -> Key | None:
        return self._keys.get(key_hash)

    def function(self, project_id: str, name: str) -> Function | None:
        return self._functions.get((project_id, name))

    def function_names(self) -> set[str]:
        """Return the names of all functions, of all projects."""
        return {name for _, name in self._functions}

    def function_by_id(self, function_id: str) -> Function | None:
        return self._functions_by_id.get(function_id)

    def redaction(self, project_id: str) -> Redaction | None:
        """Return how to hide the secrets of all live versions of a project; None: there are none.

        For what came from one run to another, whose function may not have the secret.
        """
        if project_id not in self._redactions:
            self._redactions[project_id] = redaction_of(
                {
                    name: value
                    for function in self._functions_by_id.values()
                    if function.project_id == project_id
                    for _, version in function.shares
                    for name, value in version.bindings["secrets"].items()
                }
            )
        return self._redactions[project_id]

    def triggers(self, product_id: str) -> tuple[Trigger, ...]:
        return self._triggers.get(product_id, ())

    def known_device(self, token: str) -> Device | None:
        """Return the token's device if it is in memory; `device_by_token` also asks the store."""
        return self._devices_by_token.get(token)

    def fresh(self) -> Awaitable[bool]:
        """Learn what other nodes have changed; return whether there was anything."""
        return self.learn()

    async def device_by_token(self, token: str) -> Device | None:
        return self._devices_by_token.get(token) or await self._find(token=token)

    async def device_by_id(self, project_id: str, device_id: str) -> Device:
        """Return a device of the project.

        Raises:
            NotFound: there is none of that id in this project.
        """
        device = self._devices.get(device_id) or await self._find(device_id=device_id)
        if device is None or device.project_id != project_id:
            raise NotFound("device", device_id[:80])
        return device

    async def _find(self, **wanted: str) -> Device | None:
        while True:
            seen = self._devices_changed_count
            device = await self._database.read(live.device, **wanted)
            if seen == self._devices_changed_count:  # else the row may be gone already
                return self._keep(device)

    async def projects_changed(self) -> None:
        async with self._reading:
            rows = await self._database.read(live.all_projects)
            self._keep_projects(rows)
        self.rights_changed_count += 1

    def _keep_projects(self, rows: list[StoredProject]) -> None:
        self._projects = {row.name: row.id for row in rows} | {row.id: row.id for row in rows}
        self._allowances = {
            row.id: effective(row.allowances, self._allowed)
            for row in rows
            if row.allowances != Allowances()
        }
        before = self._hardened
        self._hardened = frozenset(row.id for row in rows if row.hardened)
        for project_id in before ^ self._hardened:
            self.on_isolation(project_id)

    async def keys_changed(self) -> None:
        async with self._reading:
            rows = await self._database.read(live.all_keys)
            self._keys = {key.hash: key for key in rows}
        self.rights_changed_count += 1

    async def function_changed(self, function_id: str) -> None:
        async with self._reading:
            await self._load_functions(function_id)

    async def triggers_changed(self, product_id: str) -> None:
        async with self._reading:
            rows = await self._database.read(live.all_triggers, product_id)
            self._triggers[product_id] = tuple(rows)

    async def device_changed(self, device_id: str) -> None:
        async with self._reading:
            self._devices_changed_count += 1
            device = await self._database.read(live.device, device_id=device_id)
            known = self._devices.pop(device_id, None)
            if known is not None:
                self._devices_by_token.pop(known.token, None)
            self._keep(device)

    async def connections_changed(self, project_id: str) -> None:
        """Secrets and connections are part of what a version was loaded with: load anew."""
        async with self._reading:
            for function in tuple(self._functions_by_id.values()):
                if function.project_id == project_id:
                    await self._load_functions(function.id)

    async def _load_functions(self, function_id: str | None) -> None:
        shares = await self._database.read(live.live_shares, function_id)
        bindings: dict[str, tuple[list[StoredSecret], list[StoredConnection]]] = {}
        for project_id in {share.project_id for share in shares}:
            bindings[project_id] = (
                await self._database.read(live.all_secrets, project_id),
                await self._database.read(live.all_connections, project_id),
            )
        self._redactions.clear()
        found: dict[str, list[tuple[int, Version]]] = {}
        for share in shares:
            version = self._version(share, *bindings[share.project_id])
            found.setdefault(share.function_id, []).append((share.percent, version))
        for old_id in tuple(self._functions_by_id) if function_id is None else (function_id,):
            old = self._functions_by_id.pop(old_id, None)
            if old is None:
                continue
            self._functions.pop((old.project_id, old.name), None)
            for _, version in old.shares:
                version.live = False
                self.on_retired(version)
        for versions in found.values():
            first = versions[0][1]
            function = Function(
                id=first.function_id,
                name=first.function,
                project_id=first.project_id,
                shares=tuple(versions),
            )
            self._functions[first.project_id, first.function] = function
            self._functions_by_id[first.function_id] = function

    def _version(
        self,
        share: live.StoredShare,
        secrets: list[StoredSecret],
        connections: list[StoredConnection],
    ) -> Version:
        opened = {
            secret.name: self._vault.open(
                secret.sealed, context=secret_context(share.project_id, secret.name)
            ).decode()
            for secret in secrets
            if secret.name in share.secrets and may_use(secret.functions, share.function)
        }
        bound = {
            one.name: BoundConnection(kind=one.kind, settings=msgspec.json.decode(one.settings))
            for one in connections
            if may_use(one.functions, share.function)
        }
        usable = {
            name: {"kind": one.kind, "actions": CONNECTORS[one.kind].actions}
            for name, one in bound.items()
            if one.kind in CONNECTORS
        }
        return Version(
            id=share.version_id,
            number=share.number,
            function_id=share.function_id,
            function=share.function,
            project_id=share.project_id,
            runtime=Runtime(share.runtime),
            program=share.program,
            kind=share.kind,
            options=share.options,
            policy=share.policy,
            handlers=share.handlers,
            overrides=share.limits,
            allowed_hosts=share.allowed_hosts,
            bindings={"variables": share.variables, "secrets": opened, "connections": usable},
            connections=bound,
            withheld={one.name: one.kind for one in connections if one.name not in bound},
            redaction=redaction_of(opened),
        )

    def _keep(self, device: Device | None) -> Device | None:
        if device is None:
            return None
        if len(self._devices) >= DEVICES_KEPT:
            oldest = self._devices.pop(next(iter(self._devices)))
            self._devices_by_token.pop(oldest.token, None)
        self._devices[device.id] = device
        self._devices_by_token[device.token] = device
        return device


async def _nothing_new() -> bool:
    """Stand for the way to learn what other nodes have changed: there are none."""
    return False


def _of_product(triggers: list[Trigger], product_id: str) -> tuple[Trigger, ...]:
    return tuple(trigger for trigger in triggers if trigger.product_id == product_id)
