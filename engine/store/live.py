"""Reads what the hot path keeps in memory: keys, live versions, triggers, devices, projects."""

import json
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, func, select

from engine.allowances import Allowances, read_allowances
from engine.policies import Policy, read_policy
from engine.store.tables import (
    api_keys,
    connections,
    deployments,
    devices,
    functions,
    products,
    projects,
    secrets,
    triggers,
    versions,
    wasm_modules,
)
from engine.store.vaulted import (
    StoredConnection,
    StoredSecret,
    stored_connection,
    stored_secret,
)

_TO_RUN: Final = (  # not the files: what runs is the program
    versions.c.id,
    versions.c.number,
    versions.c.program,
    versions.c.options,
    versions.c.policy,
    versions.c.handlers,
    versions.c.limits,
    versions.c.allowed_hosts,
    versions.c.variables,
    versions.c.secrets,
    wasm_modules.c.kind,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredShare:
    """One version of a live deployment, and what it needs to run."""

    percent: int
    function_id: str
    function: str
    project_id: str
    runtime: str
    version_id: str
    number: int
    program: str  # wasm: empty
    kind: str  # wasm: command | core; javascript: empty
    options: dict[str, Any]
    policy: Policy
    handlers: tuple[str, ...]
    limits: dict[str, int]
    allowed_hosts: tuple[str, ...]
    variables: dict[str, str]
    secrets: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTrigger:
    id: str
    product_id: str
    function_id: str
    keys: frozenset[str]  # empty: every key
    in_order: bool  # the runs of a device one after another, by event time
    lateness_ms: int  # how long they wait for values with an earlier one


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDevice:
    id: str
    project_id: str
    product_id: str
    product: str
    name: str
    token: str
    timezone: str
    tags: tuple[str, ...]
    created_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredProject:
    id: str
    name: str
    hardened: bool
    allowances: Allowances


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    hash: str
    id: str
    project_id: str
    scopes: frozenset[str]
    requests_per_minute: int | None  # None: what the project allows each of its keys


def all_projects(connection: Connection) -> list[StoredProject]:
    return [
        StoredProject(
            id=row.id,
            name=row.name,
            hardened=row.isolation == "hardened",
            allowances=read_allowances(row.allowances),
        )
        for row in connection.execute(select(projects))
    ]


def all_keys(connection: Connection) -> list[StoredKey]:
    return [
        StoredKey(
            hash=row.hash,
            id=row.id,
            project_id=row.project_id,
            scopes=frozenset(json.loads(row.scopes)),
            requests_per_minute=row.requests_per_minute,
        )
        for row in connection.execute(select(api_keys))
    ]


def all_triggers(connection: Connection, product_id: str | None = None) -> list[StoredTrigger]:
    """Return the triggers of one product, or of all."""
    query = select(triggers).where(triggers.c.on == "write", triggers.c.phase == "after")
    if product_id is not None:
        query = query.where(triggers.c.product_id == product_id)
    return [
        StoredTrigger(
            id=row.id,
            product_id=row.product_id,
            function_id=row.function_id,
            keys=frozenset(json.loads(row["keys"])),
            in_order=row.order == "device",
            lateness_ms=row.lateness_ms or 0,
        )
        for row in connection.execute(query.order_by(triggers.c.id)).mappings()
    ]


def live_shares(connection: Connection, function_id: str | None = None) -> list[StoredShare]:
    """Return the versions that are live, of one function or of all."""
    newest = select(func.max(deployments.c.id)).group_by(deployments.c.function_id)
    query = (
        select(deployments.c.versions, functions)
        .join(functions, functions.c.id == deployments.c.function_id)
        .where(deployments.c.id.in_(newest))
    )
    if function_id is not None:
        query = query.where(functions.c.id == function_id)
    shares = []
    for row in connection.execute(query).mappings().all():
        for part in json.loads(row["versions"]):
            version = (
                connection.execute(
                    select(*_TO_RUN)
                    .outerjoin(wasm_modules)
                    .where(
                        versions.c.function_id == row["id"], versions.c.number == part["version"]
                    )
                )
                .mappings()
                .one_or_none()
            )
            if version is None:
                continue  # deleted since the statement before
            shares.append(_share(row, version, part["percent"]))
    return shares


def _share(function: RowMapping, version: RowMapping, percent: int) -> StoredShare:
    return StoredShare(
        percent=percent,
        function_id=function["id"],
        function=function["name"],
        project_id=function["project_id"],
        runtime=function["runtime"],
        version_id=version["id"],
        number=version["number"],
        program=version["program"],
        kind=version["kind"] or "",
        options=json.loads(version["options"]),
        policy=read_policy(version["policy"]),
        handlers=tuple(json.loads(version["handlers"])),
        limits=json.loads(version["limits"]),
        allowed_hosts=tuple(json.loads(version["allowed_hosts"])),
        variables=json.loads(version["variables"]),
        secrets=tuple(json.loads(version["secrets"])),
    )


def all_secrets(connection: Connection, project_id: str) -> list[StoredSecret]:
    query = select(secrets).where(secrets.c.project_id == project_id)
    return [stored_secret(row) for row in connection.execute(query)]


def all_connections(connection: Connection, project_id: str) -> list[StoredConnection]:
    query = select(connections).where(connections.c.project_id == project_id)
    return [stored_connection(row) for row in connection.execute(query)]


def device(
    connection: Connection, *, device_id: str | None = None, token: str | None = None
) -> StoredDevice | None:
    column, wanted = (devices.c.id, device_id) if token is None else (devices.c.token, token)
    row = connection.execute(_devices().where(column == wanted)).mappings().one_or_none()
    return None if row is None else _device(row)


def devices_of_product(
    connection: Connection, product_id: str, limit: int = 1000
) -> list[StoredDevice]:
    query = _devices().where(devices.c.product_id == product_id).order_by(devices.c.id).limit(limit)
    return [_device(row) for row in connection.execute(query).mappings()]


def _devices() -> Any:
    return select(devices, products.c.name.label("product")).join(
        products, products.c.id == devices.c.product_id
    )


def _device(row: RowMapping) -> StoredDevice:
    return StoredDevice(
        id=row["id"],
        project_id=row["project_id"],
        product_id=row["product_id"],
        product=row["product"],
        name=row["name"],
        token=row["token"],
        timezone=row["timezone"],
        tags=tuple(json.loads(row["tags"])),
        created_ms=row["created_ms"],
    )
