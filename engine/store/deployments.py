"""Deployments as stored: which versions of a function are live. The newest counts."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from sqlalchemy import Connection, RowMapping, func, insert, select

from engine.store.changes import note_change
from engine.store.pages import Page, Paged, page_of, paged
from engine.store.tables import deployments


class Share(msgspec.Struct, frozen=True):
    """One live version and the percentage of runs it gets."""

    version: int
    percent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    id: str
    function_id: str
    versions: tuple[Share, ...]
    message: str
    created_ms: int


def insert_deployment(connection: Connection, deployment: Deployment) -> None:
    row = {
        "id": deployment.id,
        "function_id": deployment.function_id,
        "versions": msgspec.json.encode(deployment.versions).decode(),
        "message": deployment.message,
        "created_ms": deployment.created_ms,
    }
    connection.execute(insert(deployments).values(row))
    note_change(connection, "function", deployment.function_id)


def live_deployment(connection: Connection, function_id: str) -> Deployment | None:
    return live_deployments(connection, [function_id]).get(function_id)


def live_deployments(connection: Connection, function_ids: Sequence[str]) -> dict[str, Deployment]:
    """Return the live deployment of each of these functions that has one."""
    newest = (
        select(func.max(deployments.c.id))
        .where(deployments.c.function_id.in_(function_ids))
        .group_by(deployments.c.function_id)
    )
    rows = connection.execute(select(deployments).where(deployments.c.id.in_(newest))).mappings()
    return {row["function_id"]: _deployment(row) for row in rows}


def deployment_before(connection: Connection, live: Deployment) -> Deployment | None:
    """Return the newest deployment whose versions differ from the live one's."""
    query = (
        select(deployments)
        .where(deployments.c.function_id == live.function_id, deployments.c.id < live.id)
        .where(deployments.c.versions != msgspec.json.encode(live.versions).decode())
        .order_by(deployments.c.id.desc())
        .limit(1)
    )
    row = connection.execute(query).mappings().first()
    return _deployment(row) if row else None


def list_deployments(connection: Connection, function_id: str, page: Page) -> Paged[Deployment]:
    query = select(deployments).where(deployments.c.function_id == function_id)
    rows = connection.execute(page_of(query, deployments.c.id, page)).mappings()
    return paged([_deployment(row) for row in rows], page, lambda deployment: deployment.id)


def _deployment(row: RowMapping) -> Deployment:
    versions = msgspec.json.decode(row["versions"], type=tuple[Share, ...])
    return Deployment(**{**row, "versions": versions})
