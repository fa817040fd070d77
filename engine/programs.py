"""Has the program of a version at hand: a JavaScript one always, a compiled module when needed.

Path:   dispatch -> here -> memory, else store.artifacts (sealed), else Builder (a cell) -> a cell
Never:  runs or loads a module in this process; hands out one that the vault does not vouch for.

A compiled module fits one Wasmtime, one kind of CPU (or the interpreter, in hardened cells) and one
configuration: its fingerprint.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol

import structlog
from sqlalchemy import Connection

from engine.catalogue import Version
from engine.clock import Clock
from engine.errors import CompileFailed, EngineError
from engine.quotas import least_memory_mb
from engine.store.artifacts import find_artifact, find_wasm, put_artifact
from engine.store.database import Database
from engine.store.journal import Journal, StoreFailed
from engine.vault import SealBroken, Vault, artifact_context
from runtimes.contract import CellKind, Runtime, SourceWarning

CACHE_BYTES_MAX: Final = 128 * 1024 * 1024  # a large module takes some 30 MB when compiled
FAILED_KEPT_MS: Final = 15_000  # a module that cannot be compiled is not tried at every run
Key = tuple[str, str]  # version id, fingerprint
_log = structlog.get_logger()


class NotBuilt(EngineError):
    """Ours or the author's: a version that was uploaded once cannot be compiled here and now."""

    code = "compile_error"

    def __init__(self, version: Version, reason: str) -> None:
        super().__init__(
            f"{version.function} version {version.number} could not be compiled anew for this "
            f"node: {reason}. If it stays so, upload the module again, or roll back"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a cell needs to make a program."""

    runtime: Runtime
    project_id: str
    name: str  # the function's: a command sees it as argv[0]
    body: bytes = field(repr=False)  # javascript: JSON {name: source}; wasm: the binary
    main: str = ""  # javascript: the file to start with
    options: dict[str, Any] = field(default_factory=dict)  # wasm: of engine.bundles.WasmOptions
    memory_mb: int
    fuel: int = 0
    hardened: bool = False  # the cells that will run it are, so the one that compiles it is

    @property
    def kind(self) -> CellKind:
        return CellKind(self.runtime, self.hardened)


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What a cell made of it."""

    program: bytes = field(repr=False)  # what a cell of the same runtime loads
    handlers: tuple[str, ...]
    kind: str = ""  # wasm: command | core
    warnings: tuple[SourceWarning, ...] = ()  # for the author; of what runs all the same


class Builder(Protocol):
    """Port: turns what an author uploaded into a program, in a cell. Adapter: `engine.builder`."""

    async def build(self, recipe: Recipe, *, is_asked: bool = False) -> Built:
        """Compile it and load it once; within a deadline of its own.

        Args:
            recipe: what to make.
            is_asked: by a request, which can be refused; not for runs that were let in already.

        Raises:
            QuotaExceeded: it is asked for, and the project has used its CPU time up.
            CompileFailed: it does not compile, load, or fit; `extra` has file, line and column.
            Overloaded: no cell can be had now.
        """
        ...


class Programs:
    """All programs of this node. `at_hand` never waits; what is on its way is waited for by all."""

    def __init__(
        self,
        database: Database,
        journal: Journal,
        vault: Vault,
        builder: Builder,
        fingerprint: Callable[[CellKind], str],
        clock: Clock,
        *,
        cache_bytes_max: int = CACHE_BYTES_MAX,
    ) -> None:
        self._database = database
        self._journal = journal
        self._vault = vault
        self._builder = builder
        self._fingerprint = fingerprint
        self._clock = clock
        self._cache = _Cache(cache_bytes_max)
        self._under_way: dict[tuple[str, Key], asyncio.Task[bytes]] = {}  # (what, of which)
        self._failed: dict[Key, tuple[int, str]] = {}  # until ms, why

    def at_hand(self, version: Version, *, hardened: bool = False) -> bytes | None:
        """Return the version's program if that needs no waiting; JavaScript's never does.

        Hardened, here and below: the program for hardened cells, which is another one.
        """
        if version.runtime is Runtime.JAVASCRIPT:
            return version.program.encode()
        return self._cache.get(self._key(version.id, hardened=hardened))

    async def program(self, version: Version, *, hardened: bool = False) -> bytes:
        """Return the version's program: from memory, from the store, or compiled anew.

        Raises:
            NotBuilt: it does not compile any more, or its function was deleted.
            Overloaded: no cell can be had now.
        """
        found = self.at_hand(version, hardened=hardened)
        if found is not None:
            return found
        return await self._once(
            "fetch", self._key(version.id, hardened=hardened),
            partial(self._fetch, version, hardened=hardened),
        )  # fmt: skip

    async def rebuild(self, version: Version, *, hardened: bool = False) -> bytes:
        """Compile the version anew, whatever is stored: a cell refused what `program` returned.

        Raises:
            NotBuilt: as for `program`.
            Overloaded: as for `program`.
        """
        _log.warning("artifact_refused", function=version.function, version=version.number)
        key = self._key(version.id, hardened=hardened)
        self._cache.drop(key)
        return await self._once("rebuild", key, partial(self._build, version, hardened=hardened))

    def insert(
        self,
        connection: Connection,
        project_id: str,
        version_id: str,
        program: bytes,
        *,
        hardened: bool = False,
    ) -> None:
        """Store a compiled module, sealed. In the writer's transaction."""
        _, fingerprint = self._key(version_id, hardened=hardened)
        context = artifact_context(project_id, version_id, fingerprint)
        put_artifact(
            connection,
            version_id=version_id,
            fingerprint=fingerprint,
            sealed=self._vault.seal(program, context=context),
            now_ms=self._clock(),
        )

    def keep(self, version_id: str, program: bytes, *, hardened: bool = False) -> None:
        """Have a module at hand that was compiled and stored just now."""
        self._cache.put(self._key(version_id, hardened=hardened), program)

    async def close(self) -> None:
        """Stop what is under way; whoever waits for it is told by the cancellation."""
        tasks = tuple(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _once(
        self, what: str, of: Key, get: Callable[[], Coroutine[Any, Any, bytes]]
    ) -> bytes:
        key = (what, of)
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.get_running_loop().create_task(get())

            def ended(task: asyncio.Task[bytes]) -> None:
                del self._under_way[key]
                task.cancelled() or task.exception()  # seen, even if nobody waits any more

            task.add_done_callback(ended)
        return await asyncio.shield(task)  # others wait for it, too

    def _key(self, version_id: str, *, hardened: bool) -> Key:
        return version_id, self._fingerprint(CellKind(Runtime.WASM, hardened))

    async def _fetch(self, version: Version, *, hardened: bool) -> bytes:
        key = _, fingerprint = self._key(version.id, hardened=hardened)
        sealed = await self._database.read(find_artifact, version.id, fingerprint)
        if sealed is None:
            return await self._build(version, hardened=hardened)
        context = artifact_context(version.project_id, version.id, fingerprint)
        try:
            program = await asyncio.to_thread(self._vault.open, sealed, context=context)
        except SealBroken:
            # Not fatal, as it is for a secret: what was uploaded is still there.
            _log.warning("artifact_altered", function=version.function, version=version.number)
            return await self._build(version, hardened=hardened)
        self._cache.put(key, program)
        return program

    async def _build(self, version: Version, *, hardened: bool) -> bytes:
        key = self._key(version.id, hardened=hardened)
        until_ms, reason = self._failed.get(key, (0, ""))
        if self._clock() < until_ms:
            raise NotBuilt(version, reason)
        wasm = await self._database.read(find_wasm, version.id)
        if wasm is None:
            raise NotBuilt(version, "its function was deleted")
        try:
            built = await self._builder.build(recipe_of(version, wasm, hardened=hardened))
        except CompileFailed as error:
            self._fail(key, str(error))
            raise NotBuilt(version, str(error)) from error
        _log.info("compiled_anew", function=version.function, version=version.number)
        self.keep(version.id, built.program, hardened=hardened)
        with suppress(StoreFailed):  # the journal has logged it; the next start compiles once more
            await self._journal.run(
                self.insert, version.project_id, version.id, built.program, hardened=hardened
            )
        return built.program

    def _fail(self, key: Key, reason: str) -> None:
        now_ms = self._clock()
        self._failed = {
            known: failed for known, failed in self._failed.items() if failed[0] > now_ms
        }
        self._failed[key] = (now_ms + FAILED_KEPT_MS, reason)


def recipe_of(version: Version, wasm: bytes, *, hardened: bool) -> Recipe:
    """Return how a live version of a module is made, for hardened cells or for the others."""
    return Recipe(
        runtime=Runtime.WASM,
        project_id=version.project_id,
        name=version.function,
        body=wasm,
        options=version.options,
        memory_mb=least_memory_mb(version.handlers, version.overrides),
        fuel=version.overrides.get("fuel", 0),
        hardened=hardened,
    )


class _Cache:
    """Programs in memory, up to so many bytes; the least recently used goes first."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._programs: OrderedDict[Key, bytes] = OrderedDict()

    def get(self, key: Key) -> bytes | None:
        program = self._programs.get(key)
        if program is not None:
            self._programs.move_to_end(key)
        return program

    def put(self, key: Key, program: bytes) -> None:
        self.drop(key)
        self._programs[key] = program
        self._bytes += len(program)
        while self._bytes > self._bytes_max:
            _, oldest = self._programs.popitem(last=False)
            self._bytes -= len(oldest)

    def drop(self, key: Key) -> None:
        self._bytes -= len(self._programs.pop(key, b""))
