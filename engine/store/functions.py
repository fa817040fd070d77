"""Functions and their versions as stored. A version is never changed once it is there."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, RowMapping, Select, delete, func, insert, or_, select, tuple_

from engine.policies import NONE, Policy
from engine.store.changes import note_change
from engine.store.pages import Page, Paged, page_of, paged
from engine.store.tables import functions, triggers, versions, wasm_modules
from engine.store.unique import insert_unique


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    id: str
    project_id: str
    name: str
    runtime: str
    created_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WasmFacts:
    """What is told of a module without reading it."""

    kind: str  # command | core
    bytes: int
    sha256: str  # hex


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionSummary:
    """What a list shows of a version: everything but its code."""

    id: str
    function_id: str
    number: int
    handlers: tuple[str, ...]
    limits: dict[str, int]  # the author's overrides
    allowed_hosts: tuple[str, ...]
    variables: dict[str, str]
    secrets: tuple[str, ...]
    message: str
    created_ms: int
    options: dict[str, Any]  # of engine.bundles.WasmOptions; javascript: empty
    wasm: WasmFacts | None  # javascript: None
    policy: Policy = NONE  # what its queued runs keep to


@dataclass(frozen=True, slots=True, kw_only=True)
class Version(VersionSummary):
    files: dict[str, str]
    main: str
    program: str  # JSON: what the cell evaluates; wasm: empty, see store.artifacts


_CODE: Final = frozenset({"files", "main", "program"})
_FACTS: Final = tuple(
    column.label(f"wasm_{column.name}")
    for column in (wasm_modules.c.kind, wasm_modules.c.bytes, wasm_modules.c.sha256)
)
_SUMMARY: Final = tuple(column for column in versions.columns if column.name not in _CODE)
_JSON: Final[dict[str, Any]] = {
    "files": dict[str, str],
    "handlers": tuple[str, ...],
    "limits": dict[str, int],
    "allowed_hosts": tuple[str, ...],
    "variables": dict[str, str],
    "secrets": tuple[str, ...],
    "options": dict[str, Any],
    "policy": Policy,
}


def insert_function(connection: Connection, function: Function) -> None:
    insert_unique(connection, functions, asdict(function), name_taken(function.name))


def name_taken(name: str) -> str:
    """Say what the author of a function can do when its name is taken."""
    return (
        f"a function named {name!r} exists already; "
        f"POST /v1/functions/{name}/versions for a new version"
    )


def find_function(connection: Connection, project_id: str, asked: str) -> Function | None:
    """Return the function with this name or this id."""
    query = (
        select(functions)
        .where(functions.c.project_id == project_id)
        .where(or_(functions.c.id == asked, functions.c.name == asked))
        .order_by((functions.c.id == asked).desc())
        .limit(1)
    )
    row = connection.execute(query).mappings().first()
    return Function(**row) if row else None


def list_functions(connection: Connection, project_id: str, page: Page) -> Paged[Function]:
    query = select(functions).where(functions.c.project_id == project_id)
    rows = connection.execute(page_of(query, functions.c.id, page)).mappings()
    return paged([Function(**row) for row in rows], page, lambda function: function.id)


def delete_function(connection: Connection, function_id: str) -> None:
    """Delete the function, and by cascade its versions, deployments and triggers."""
    bound = select(triggers.c.product_id).where(triggers.c.function_id == function_id)
    for product_id in connection.execute(bound.distinct()).scalars().all():
        note_change(connection, "triggers", product_id)
    connection.execute(delete(functions).where(functions.c.id == function_id))
    note_change(connection, "function", function_id)


def insert_version(connection: Connection, version: Version) -> None:
    """Insert the version's own row; its module: `store.artifacts.insert_module`."""
    row = asdict(version)
    del row["wasm"]
    for name in _JSON:
        row[name] = msgspec.json.encode(row[name]).decode()
    connection.execute(insert(versions).values(row))


def next_version_number(connection: Connection, function_id: str) -> int:
    """Return the number that the next version gets; true only inside the writer's transaction."""
    query = select(func.max(versions.c.number)).where(versions.c.function_id == function_id)
    return (connection.execute(query).scalar() or 0) + 1


def find_version(connection: Connection, function_id: str, number: int) -> Version | None:
    query = _whole().where(versions.c.function_id == function_id, versions.c.number == number)
    row = connection.execute(query).mappings().first()
    return Version(**_decoded(row)) if row else None


def latest_version(connection: Connection, function_id: str) -> Version | None:
    query = (
        _whole()
        .where(versions.c.function_id == function_id)
        .order_by(versions.c.number.desc())
        .limit(1)
    )
    row = connection.execute(query).mappings().first()
    return Version(**_decoded(row)) if row else None


def latest_summaries(
    connection: Connection, function_ids: Sequence[str]
) -> dict[str, VersionSummary]:
    """Return the newest version of each of these functions, without its code."""
    newest = (
        select(versions.c.function_id, func.max(versions.c.number))
        .where(versions.c.function_id.in_(function_ids))
        .group_by(versions.c.function_id)
    )
    query = _summaries().where(tuple_(versions.c.function_id, versions.c.number).in_(newest))
    rows = connection.execute(query).mappings()
    return {row["function_id"]: VersionSummary(**_decoded(row)) for row in rows}


def find_summaries(
    connection: Connection, function_id: str, numbers: Sequence[int]
) -> dict[int, VersionSummary]:
    """Return those of the asked versions that exist, without their code."""
    query = _summaries().where(
        versions.c.function_id == function_id, versions.c.number.in_(numbers)
    )
    rows = connection.execute(query).mappings()
    return {row["number"]: VersionSummary(**_decoded(row)) for row in rows}


def list_versions(connection: Connection, function_id: str, page: Page) -> Paged[VersionSummary]:
    query = _summaries().where(versions.c.function_id == function_id)
    rows = connection.execute(page_of(query, versions.c.id, page)).mappings()
    return paged([VersionSummary(**_decoded(row)) for row in rows], page, lambda one: one.id)


def _summaries() -> Select[Any]:
    return select(*_SUMMARY, *_FACTS).outerjoin(wasm_modules)


def _whole() -> Select[Any]:
    return select(versions, *_FACTS).outerjoin(wasm_modules)


def _decoded(row: RowMapping) -> dict[str, Any]:
    fields = dict(row)
    facts = {name: fields.pop(f"wasm_{name}") for name in ("kind", "bytes", "sha256")}
    fields["wasm"] = WasmFacts(**facts) if facts["kind"] is not None else None
    for name, kind in _JSON.items():
        if name in fields:
            fields[name] = msgspec.json.decode(fields[name], type=kind)
    return fields
