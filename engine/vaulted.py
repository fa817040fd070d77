"""Takes secrets and the credentials of connections: checks them, and stores them sealed.

Path:   api.vaulted -> here -> vault -> store.vaulted; the catalogue hands them to versions
Never:  gives a secret or a credential back, nor puts one into an error.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from engine.connectors import CONNECTORS
from engine.control import Control
from engine.errors import Invalid
from engine.names import VARIABLE_NAME
from engine.quotas import CREDENTIALS_BYTES_MAX, SECRET_BYTES_MAX
from engine.store.vaulted import delete_connection, delete_secret, put_connection, put_secret
from engine.vault import Vault, connection_context, secret_context


class Keeper(Control, Protocol):
    """Port: what keeping secrets needs besides."""

    @property
    def vault(self) -> Vault: ...


async def keep_secret(keeper: Keeper, project_id: str, name: str, value: str) -> None:
    """Make a secret, or replace it; functions that name it have the new value at their next run."""
    _check_name(name)
    plain = value.encode()
    if not 1 <= len(plain) <= SECRET_BYTES_MAX:
        raise Invalid(f"must have 1 to {SECRET_BYTES_MAX} bytes, has {len(plain)}", "/value")
    sealed = keeper.vault.seal(plain, context=secret_context(project_id, name))
    await keeper.journal.run(
        put_secret, project_id=project_id, name=name, sealed=sealed, now_ms=keeper.clock()
    )
    await keeper.catalogue.connections_changed(project_id)


async def drop_secret(keeper: Keeper, project_id: str, name: str) -> None:
    """Delete a secret; functions that name it run on without it."""
    await keeper.journal.run(delete_secret, project_id, name)
    await keeper.catalogue.connections_changed(project_id)


async def keep_connection(
    keeper: Keeper,
    project_id: str,
    name: str,
    *,
    kind: str,
    credentials: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> int:
    """Make a connection to a provider, or replace it; return when, in milliseconds."""
    _check_name(name)
    connector = CONNECTORS.get(kind)
    if connector is None:
        raise Invalid(f"{kind[:80]!r} is none of {', '.join(CONNECTORS)}", "/kind")
    connector.check_credentials(dict(credentials))
    connector.check_settings(dict(settings))
    plain = msgspec.json.encode(credentials)
    if len(plain) > CREDENTIALS_BYTES_MAX:
        raise Invalid(
            f"has {len(plain)} bytes as JSON; at most {CREDENTIALS_BYTES_MAX} are allowed",
            "/credentials",
        )
    now_ms = keeper.clock()
    await keeper.journal.run(
        put_connection,
        project_id=project_id,
        name=name,
        kind=kind,
        sealed=keeper.vault.seal(plain, context=connection_context(project_id, name)),
        settings=msgspec.json.encode(settings).decode(),
        now_ms=now_ms,
    )
    await keeper.catalogue.connections_changed(project_id)
    return now_ms


async def drop_connection(keeper: Keeper, project_id: str, name: str) -> None:
    """Delete a connection; deliveries that still wait for it fail and say so."""
    await keeper.journal.run(delete_connection, project_id, name)
    await keeper.catalogue.connections_changed(project_id)


def _check_name(name: str) -> None:
    if not VARIABLE_NAME.fullmatch(name):
        raise Invalid("must be a capital letter, then up to 63 capitals, digits or _", "{name}")
