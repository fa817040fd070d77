"""Compiled modules: in memory, sealed in the store, or compiled anew; and who compiles them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGABRT, SIGSEGV
from typing import Any

import msgspec
import pytest
from sqlalchemy import insert, select, update
from structlog.testing import capture_logs

from engine import builder as building
from engine.builder import Builder, Overloaded
from engine.catalogue import Version
from engine.errors import CompileFailed
from engine.programs import FAILED_KEPT_MS, Built, NotBuilt, Programs, Recipe
from engine.store.artifacts import ARTIFACTS_KEPT, insert_module
from engine.store.database import Database
from engine.store.functions import WasmFacts
from engine.store.journal import Journal
from engine.store.tables import artifacts, functions, projects, versions
from engine.vault import Vault
from runtimes.contract import CellKind, GuestError, Runtime, ToCell, unpacked
from sandbox.supervisor import Death, SandboxError

WASM = b"\0asm\x01\0\0\0"
NOW_MS = 1_800_000_000_000


def version(number: int = 1, **fields: Any) -> Version:
    return Version(
        id=f"ver_{number}",
        number=number,
        function_id="fn_1",
        function="alarm",
        project_id="prj_1",
        handlers=("default",),
        allowed_hosts=(),
        bindings={},
        **{"runtime": Runtime.WASM, "program": "", "overrides": {}, **fields},
    )


@dataclass
class Smith:
    """A builder that is told what to answer, and remembers what it was asked."""

    asked: list[Recipe] = field(default_factory=list)
    failure: Exception | None = None
    gate: asyncio.Event | None = None
    bytes: int = 0  # of each program

    async def build(self, recipe: Recipe, *, is_asked: bool = False) -> Built:
        self.asked.append(recipe)
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        program = b"compiled %d" % len(self.asked)
        return Built(program=program.ljust(self.bytes), handlers=("default",), kind="core")


@dataclass
class Shop:
    """Programs on a database of their own, with two versions of a module in it."""

    database: Database
    journal: Journal
    smith: Smith
    programs: Programs
    now_ms: int = NOW_MS
    machine: str = "wasmtime 50 x86_64"

    def again(self, **fields: Any) -> Programs:
        """Return what the next start of the engine would have: nothing in memory."""
        return Programs(
            self.database, self.journal, Vault(bytes(32)), self.smith,
            fingerprint=lambda kind: f"{self.machine}{' interpreter' * kind.hardened}",
            clock=lambda: self.now_ms, **fields,
        )  # fmt: skip

    def stored(self) -> list[Any]:
        with self.database.engine.connect() as connection:
            return list(connection.execute(select(artifacts).order_by(artifacts.c.created_ms)))


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    database = Database(f"sqlite:///{tmp_path / 'engine.db'}")
    database.migrate()
    journal = Journal(database)
    await journal.run(_fill)
    made = Shop(database, journal, Smith(), None)  # type: ignore[arg-type]
    made.programs = made.again()
    yield made
    await made.programs.close()
    await journal.close()
    database.close()


def _fill(connection: Any) -> None:
    row = {"id": "prj_1", "name": "p", "created_ms": 1}
    connection.execute(insert(projects).values(row))
    row = {"id": "fn_1", "project_id": "prj_1", "name": "alarm", "runtime": "wasm", "created_ms": 1}
    connection.execute(insert(functions).values(row))
    for number in (1, 2):
        row = {column.name: "{}" for column in versions.columns}
        row |= {"id": f"ver_{number}", "function_id": "fn_1", "number": number, "created_ms": 1}
        connection.execute(insert(versions).values(row))
        insert_module(connection, f"ver_{number}", WasmFacts(kind="core", bytes=8, sha256=""), WASM)


def test_a_javascript_program_is_always_at_hand() -> None:
    """It travels with its version: nothing is asked for it."""
    programs = Programs(None, None, None, None, str, lambda: 0)  # type: ignore[arg-type]

    found = programs.at_hand(version(runtime=Runtime.JAVASCRIPT, program='{"main":"é"}'))

    assert found == '{"main":"é"}'.encode()


async def test_a_module_is_compiled_once_and_for_all(shop: Shop) -> None:
    """Then it is in memory; after a restart it comes from the store, where it is sealed."""
    first = await shop.programs.program(version())
    at_hand = shop.programs.at_hand(version())
    restarted = shop.again()
    before = restarted.at_hand(version())
    again = await restarted.program(version())

    assert first == at_hand == again == b"compiled 1"
    assert before is None
    assert len(shop.smith.asked) == 1
    (row,) = shop.stored()
    assert (row.version_id, row.fingerprint, row.created_ms) == ("ver_1", shop.machine, NOW_MS)
    assert b"compiled" not in row.sealed


async def test_what_is_compiled_is_what_was_uploaded(shop: Shop) -> None:
    """With the version's own options and limits."""
    asked = version(options={"args": ["-c"]}, overrides={"fuel": 9, "memory_mb": 32})

    await shop.programs.program(asked)

    (recipe,) = shop.smith.asked
    assert recipe == Recipe(
        runtime=Runtime.WASM, project_id="prj_1", name="alarm", body=WASM,
        options={"args": ["-c"]}, memory_mb=32, fuel=9,
    )  # fmt: skip


async def test_an_upload_is_at_hand_and_stored_without_compiling_twice(shop: Shop) -> None:
    """What the upload compiled is what runs."""
    await shop.journal.run(shop.programs.insert, "prj_1", "ver_1", b"uploaded")
    shop.programs.keep("ver_1", b"uploaded")

    assert shop.programs.at_hand(version()) == b"uploaded"
    assert await shop.again().program(version()) == b"uploaded"
    assert shop.smith.asked == []


async def test_each_kind_of_cell_has_a_program_of_its_own(shop: Shop) -> None:
    """Compiled for it at the first run there, in a cell of that kind, and both stored and kept."""
    shop.smith.gate = asyncio.Event()
    ways = (False, True, False, True)
    asked = [
        asyncio.create_task(shop.programs.program(version(), hardened=hardened))
        for hardened in ways
    ]
    await asyncio.sleep(0)
    shop.smith.gate.set()

    programs = [await one for one in asked]

    assert programs[:2] == programs[2:]
    assert len(set(programs)) == 2
    assert sorted(recipe.kind.hardened for recipe in shop.smith.asked) == [False, True]
    assert {row.fingerprint for row in shop.stored()} == {
        shop.machine, f"{shop.machine} interpreter",
    }  # fmt: skip
    restarted = shop.again()
    for hardened, program in zip(ways, programs, strict=True):
        assert shop.programs.at_hand(version(), hardened=hardened) == program
        assert await restarted.program(version(), hardened=hardened) == program


async def test_what_one_kind_of_cell_cannot_compile_the_other_may(shop: Shop) -> None:
    """A failure is remembered for a while: of the kind that it was."""
    shop.smith.failure = CompileFailed("too large", file="", line=0, column=0)
    with pytest.raises(NotBuilt):
        await shop.programs.program(version(), hardened=True)
    shop.smith.failure = None

    standard = await shop.programs.program(version())

    assert standard.startswith(b"compiled")
    with pytest.raises(NotBuilt):
        await shop.programs.program(version(), hardened=True)


@pytest.mark.parametrize("at", [0, 1, 20, -1])
async def test_an_altered_artifact_is_not_loaded_but_compiled_anew(shop: Shop, at: int) -> None:
    """Whoever can write to the database cannot have a cell run machine code of theirs."""
    await shop.programs.program(version())
    (row,) = shop.stored()
    altered = bytearray(row.sealed)
    altered[at] ^= 1
    await shop.journal.run(
        lambda connection: connection.execute(update(artifacts).values(sealed=bytes(altered)))
    )

    with capture_logs() as logs:
        found = await shop.again().program(version())

    assert found == b"compiled 2"
    assert logs[0]["event"] == "artifact_altered"
    assert await shop.again().program(version()) == b"compiled 2"


async def test_an_artifact_of_another_version_does_not_pass(shop: Shop) -> None:
    """Sealed rows cannot be swapped."""
    await shop.programs.program(version(1))
    await shop.programs.program(version(2))
    first, second = sorted(shop.stored(), key=lambda row: row.version_id)
    statement = update(artifacts).where(artifacts.c.version_id == "ver_1")
    await shop.journal.run(
        lambda connection: connection.execute(statement.values(sealed=second.sealed))
    )

    found = await shop.again().program(version(1))

    assert (first.version_id, second.version_id) == ("ver_1", "ver_2")
    assert found == b"compiled 3"


async def test_another_machine_compiles_for_itself(shop: Shop) -> None:
    """And leaves what is stored for the others."""
    await shop.programs.program(version())
    shop.machine = "wasmtime 51 x86_64"

    assert shop.programs.at_hand(version()) is None
    assert await shop.programs.program(version()) == b"compiled 2"
    assert len(shop.stored()) == 2
    shop.machine = "wasmtime 50 x86_64"
    assert await shop.again().program(version()) == b"compiled 1"


async def test_machines_that_are_gone_leave_nothing_behind(shop: Shop) -> None:
    """Only the newest artifacts of a version stay."""
    for number in range(ARTIFACTS_KEPT + 2):
        shop.machine = f"wasmtime {number}"
        shop.now_ms += 1
        await shop.programs.program(version())

    kept = [row.fingerprint for row in shop.stored()]
    assert kept == [f"wasmtime {number}" for number in range(2, ARTIFACTS_KEPT + 2)]


async def test_many_who_need_it_wait_for_one_build(shop: Shop) -> None:
    """Whoever gives up waiting does not stop it for the others."""
    shop.smith.gate = asyncio.Event()
    waiting = [asyncio.create_task(shop.programs.program(version())) for _ in range(5)]
    while not shop.smith.asked:
        await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    shop.smith.gate.set()

    found = await asyncio.gather(*waiting, return_exceptions=True)

    assert found[1:] == [b"compiled 1"] * 4
    assert isinstance(found[0], asyncio.CancelledError)
    assert len(shop.smith.asked) == 1


async def test_a_cell_that_refuses_an_artifact_gets_a_new_one(shop: Shop) -> None:
    """Which takes the place of the old one, in memory and in the store."""
    await shop.programs.program(version())

    rebuilt = await shop.programs.rebuild(version())

    assert rebuilt == shop.programs.at_hand(version()) == b"compiled 2"
    assert await shop.again().program(version()) == b"compiled 2"
    assert len(shop.stored()) == 1


async def test_a_module_that_does_not_compile_any_more_says_what_to_do(shop: Shop) -> None:
    """And is not tried again at every run, but after a while."""
    shop.smith.failure = CompileFailed("CompileError: no", file="", line=0, column=0)

    for _ in range(3):
        with pytest.raises(NotBuilt, match=r"alarm version 1 .*CompileError: no.* upload"):
            await shop.programs.program(version())
    tried = len(shop.smith.asked)
    shop.now_ms += FAILED_KEPT_MS
    shop.smith.failure = None
    found = await shop.programs.program(version())

    assert tried == 1
    assert found == b"compiled 2"


async def test_without_a_cell_the_next_try_may_succeed(shop: Shop) -> None:
    """It says nothing of the module."""
    shop.smith.failure = Overloaded("no cell")
    with pytest.raises(Overloaded):
        await shop.programs.program(version())
    shop.smith.failure = None

    assert await shop.programs.program(version()) == b"compiled 2"


async def test_a_version_that_is_gone_is_not_built(shop: Shop) -> None:
    """Its function was deleted while a run waited."""
    with pytest.raises(NotBuilt, match="deleted"):
        await shop.programs.program(version(3))


async def test_memory_is_bounded_in_bytes_and_the_least_used_goes(shop: Shop) -> None:
    """What was forgotten comes back from the store."""
    shop.smith.bytes = 100
    programs = shop.again(cache_bytes_max=250)
    await programs.program(version(1))
    await programs.program(version(2))
    programs.at_hand(version(1))
    programs.keep("ver_3", bytes(100))

    held = [programs.at_hand(version(number)) is not None for number in (1, 2, 3)]

    assert held == [True, False, True]
    assert (await programs.program(version(2))).startswith(b"compiled 2")
    assert len(shop.smith.asked) == 2
    programs.keep("ver_4", bytes(1_000))  # more than there is room for: it is not kept
    assert programs.at_hand(version(4)) is None


async def test_what_is_under_way_ends_with_the_engine(shop: Shop) -> None:
    """Nobody waits for ever."""
    shop.smith.gate = asyncio.Event()
    waiting = asyncio.create_task(shop.programs.program(version()))
    while not shop.smith.asked:
        await asyncio.sleep(0)

    await shop.programs.close()

    with pytest.raises(asyncio.CancelledError):
        await waiting


# The builder itself, with cells that do as they are told.


class Cell:
    """Answers BUILD and LOAD, or ends in a way of its own."""

    def __init__(self, **ways: Any) -> None:
        self.ways = ways
        self.listener: Any = None
        self.killed = False
        self.sent: dict[str, tuple[Any, bytes]] = {}

    def send(self, kind: ToCell, isolate: int, payload: bytes) -> None:
        header, body = unpacked(payload)
        self.sent[kind] = (msgspec.json.decode(header), body)
        asyncio.get_running_loop().call_soon(self._answer, kind)

    def _answer(self, kind: ToCell) -> None:
        way = self.ways.get(kind.name)
        if way == "hang":
            return
        if isinstance(way, Death):
            self.listener.on_death(way)
        elif isinstance(way, GuestError):
            self.listener.on_refused(1, way)
        elif kind is ToCell.BUILD:
            self.listener.on_built(0, b"machine code")
        else:
            self.listener.on_loaded(1, way or b'{"handlers":["default"],"kind":"core","log":[]}')

    def kill(self) -> None:
        self.killed = True


class Cells:
    """A sandbox with these cells."""

    def __init__(self, *cells: Cell) -> None:
        self.cells = list(cells)
        self.runtimes: list[Runtime] = []

    async def acquire(self, kind: CellKind) -> Cell:
        self.runtimes.append(kind.runtime)
        if not self.cells:
            raise SandboxError("none started")
        return self.cells.pop(0)


def recipe(project_id: str = "prj_1") -> Recipe:
    return Recipe(
        runtime=Runtime.WASM, project_id=project_id, name="alarm", body=WASM,
        options={"io": "text"}, memory_mb=64, fuel=5,
    )  # fmt: skip


def builder(*cells: Cell) -> Builder:
    return Builder(Cells(*cells), lambda: NOW_MS, cell_memory_mb=512)  # type: ignore[arg-type]


async def test_a_cell_is_told_all_that_it_needs() -> None:
    """Compile, then load once on trial; the cell is thrown away."""
    cell = Cell()

    built = await builder(cell).build(recipe())

    assert built == Built(program=b"machine code", handlers=("default",), kind="core")
    header, body = cell.sent[ToCell.BUILD]
    assert (header["options"], header["fuel"], body) == ({"io": "text"}, 5, WASM)
    header, body = cell.sent[ToCell.LOAD]
    assert body == b"machine code"
    assert (header["name"], header["memory_mb"], header["now_ms"]) == ("alarm", 64, NOW_MS)
    assert cell.killed


ABORT = Death(signal=SIGABRT, exit_code=0, peak_bytes=0)
SEGFAULT = Death(signal=SIGSEGV, exit_code=0, peak_bytes=0)


@pytest.mark.parametrize(
    ("ways", "said"),
    [
        ({"BUILD": ABORT}, r"ran out of memory while the module was compiled; it has 512 MB"),
        ({"BUILD": SEGFAULT}, r"died while the module was compiled.*wasm-opt"),
        ({"LOAD": ABORT}, r"ran out of memory while the module was loaded"),
        ({"BUILD": GuestError(name="CompileError", message="bad")}, "^CompileError: bad$"),
        ({"LOAD": GuestError(name="Trap", message="unreachable")}, "^Trap: unreachable$"),
    ],
)
async def test_whatever_happens_to_the_cell_the_author_is_told(
    ways: dict[str, Any], said: str
) -> None:
    """With the limit and the remedy, where there is one."""
    cell = Cell(**ways)

    with pytest.raises(CompileFailed, match=said) as caught:
        await builder(cell).build(recipe())

    assert caught.value.extra == {"file": "", "line": 0, "column": 0}
    assert cell.killed


async def test_a_build_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the time and what makes a module smaller; the cell is killed."""
    monkeypatch.setitem(building.BUILD_MS, Runtime.WASM, 10)
    cell = Cell(BUILD="hang")

    with pytest.raises(CompileFailed, match=r"longer than 10 ms; make it smaller: wasm-opt"):
        await builder(cell).build(recipe())

    assert cell.killed


async def test_no_cell_is_nobodys_fault() -> None:
    """The caller may try again."""
    with pytest.raises(Overloaded, match="none started"):
        await builder().build(recipe())


async def test_an_answer_without_a_kind_is_not_believed() -> None:
    """A cell is a stranger."""
    cell = Cell(LOAD=b'{"handlers":["default"],"kind":"component"}')

    with pytest.raises(CompileFailed, match="no proper answer"):
        await builder(cell).build(recipe())


@asynccontextmanager
async def building_of(made: Builder, *project_ids: str) -> AsyncIterator[list[asyncio.Task[Any]]]:
    tasks = [asyncio.create_task(made.build(recipe(one))) for one in project_ids]
    for _ in range(20):
        await asyncio.sleep(0)
    yield tasks
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_one_projects_modules_do_not_keep_the_others_waiting() -> None:
    """One at a time of each project, two in all, in the order of their arrival."""
    cells = [Cell(BUILD="hang") for _ in range(6)]
    made = builder(*cells)

    async with building_of(made, "a", "a", "a", "b", "c"):
        started = [cell for cell in cells if cell.listener is not None]

        assert len(started) == 2
        for cell in started:
            cell.listener.on_refused(1, GuestError(name="CompileError", message="bad"))
        for _ in range(20):
            await asyncio.sleep(0)
        assert sum(bool(cell.sent) for cell in cells) == 4


async def test_waiting_for_a_turn_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """503: nothing is wrong with the module."""
    monkeypatch.setattr(building, "TURN_WAIT_MS", 10)
    made = builder(Cell(BUILD="hang"), Cell())

    async with building_of(made, "a"):
        with pytest.raises(Overloaded, match="try again"):
            await made.build(recipe("a"))
