"""Keeps uploaded WebAssembly modules and what they were compiled to: `wasm_modules`, `artifacts`.

Path:   functions -> journal -> here; programs -> here
Never:  sees an artifact that is not sealed.
"""

from dataclasses import asdict
from typing import Final

from sqlalchemy import Connection, delete, insert, select

from engine.store.functions import WasmFacts
from engine.store.tables import artifacts, versions, wasm_modules

ARTIFACTS_KEPT: Final = 4  # of one version: nodes of as many kinds may share a database


def insert_module(connection: Connection, version_id: str, facts: WasmFacts, wasm: bytes) -> None:
    """Insert the module of a version that was inserted just now."""
    row = {"version_id": version_id, "wasm": wasm} | asdict(facts)
    connection.execute(insert(wasm_modules).values(row))


def find_wasm(connection: Connection, version_id: str) -> bytes | None:
    """Return the module as it was uploaded."""
    query = select(wasm_modules.c.wasm).where(wasm_modules.c.version_id == version_id)
    return connection.execute(query).scalar()


def find_artifact(connection: Connection, version_id: str, fingerprint: str) -> bytes | None:
    """Return what the version was compiled to, sealed."""
    query = select(artifacts.c.sealed).where(
        artifacts.c.version_id == version_id, artifacts.c.fingerprint == fingerprint
    )
    return connection.execute(query).scalar()


def put_artifact(
    connection: Connection, *, version_id: str, fingerprint: str, sealed: bytes, now_ms: int
) -> None:
    """Store it in the place of an older one; does nothing when the version is gone.

    Only the newest ARTIFACTS_KEPT of a version stay: those of machines that are gone go, too.
    """
    if connection.execute(select(versions.c.id).where(versions.c.id == version_id)).first() is None:
        return
    of_version = artifacts.c.version_id == version_id
    newest = (
        select(artifacts.c.fingerprint)
        .where(of_version, artifacts.c.fingerprint != fingerprint)
        .order_by(artifacts.c.created_ms.desc())
        .limit(ARTIFACTS_KEPT - 1)
    )
    kept = list(connection.execute(newest).scalars())
    connection.execute(delete(artifacts).where(of_version, artifacts.c.fingerprint.not_in(kept)))
    row = {
        "version_id": version_id,
        "fingerprint": fingerprint,
        "created_ms": now_ms,
        "sealed": sealed,
    }
    connection.execute(insert(artifacts).values(row))
