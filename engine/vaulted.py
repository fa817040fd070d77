"""Takes secrets and the credentials of connections: checks them, and stores them sealed.

Path:   api.vaulted -> here -> vault -> store.vaulted; the catalogue hands them to versions
Never:  gives a secret or a credential back, nor puts one into an error.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import Connection

from engine.connectors import CONNECTORS
from engine.connectors.contract import check_connection
from engine.control import Control
from engine.errors import Conflict, Invalid
from engine.names import FUNCTION_NAME, VARIABLE_NAME
from engine.quotas import CREDENTIALS_BYTES_MAX, SECRET_BYTES_MAX
from engine.store.vaulted import (
    Allowed,
    delete_connection,
    delete_secret,
    get_connections,
    get_secrets,
    live_functions_with,
    may_use,
    put_connection,
    put_secret,
)
from engine.vault import Vault, connection_context, secret_context

FUNCTIONS_LISTED_MAX: Final = 200
NAMES_SHOWN: Final = 3  # in an error
_TAKEN: Final = (
    "there is a {other} {name}, and env.{name} can be one of them only: choose another name, or "
    "delete the {other} first"
)
Functions = Sequence[str] | None | UnsetType
"""Names of the functions that may have something; None: all of the project; unset: as it was."""


class Keeper(Control, Protocol):
    """Port: what keeping secrets needs besides."""

    @property
    def vault(self) -> Vault: ...


async def keep_secret(
    keeper: Keeper,
    project_id: str,
    name: str,
    value: str,
    *,
    functions: Functions = UNSET,
    force: bool = False,
) -> None:
    """Make a secret, or replace it; functions that name it have the new value at their next run.

    Args:
        keeper: what it takes.
        project_id: whose it is.
        name: as functions know it.
        value: of 1 to SECRET_BYTES_MAX bytes.
        functions: the names of those that may have it, some perhaps yet to be made.
        force: also if a live function that names it may not have it any more.

    Raises:
        Conflict: a live function would lose it; or a connection has that name.
    """
    _check_name(name)
    allowed = check_functions(functions)
    plain = value.encode()
    if not 1 <= len(plain) <= SECRET_BYTES_MAX:
        raise Invalid(f"must have 1 to {SECRET_BYTES_MAX} bytes, has {len(plain)}", "/value")
    sealed = keeper.vault.seal(plain, context=secret_context(project_id, name))
    await keeper.journal.run(
        _put_secret,
        force=force,
        project_id=project_id,
        name=name,
        sealed=sealed,
        now_ms=keeper.clock(),
        functions=allowed,
    )
    await keeper.catalogue.connections_changed(project_id)


async def drop_secret(keeper: Keeper, project_id: str, name: str, *, force: bool = False) -> None:
    """Delete a secret; with `force` live functions that name it run on without it.

    Raises:
        Conflict: a live function names it: that one could not be deployed again.
    """
    await keeper.journal.run(_drop_secret, project_id, name, force=force)
    await keeper.catalogue.connections_changed(project_id)


async def keep_connection(
    keeper: Keeper,
    project_id: str,
    name: str,
    *,
    kind: str,
    credentials: Mapping[str, Any],
    settings: Mapping[str, Any],
    functions: Functions = UNSET,
) -> int:
    """Make a connection to a provider, or replace it; return when, in milliseconds."""
    _check_name(name)
    allowed = check_functions(functions)
    connector = CONNECTORS.get(kind)
    if connector is None:
        raise Invalid(f"{kind[:80]!r} is none of {', '.join(CONNECTORS)}", "/kind")
    check_connection(connector, credentials, settings)
    plain = msgspec.json.encode(credentials)
    if len(plain) > CREDENTIALS_BYTES_MAX:
        raise Invalid(
            f"has {len(plain)} bytes as JSON; at most {CREDENTIALS_BYTES_MAX} are allowed",
            "/credentials",
        )
    now_ms = keeper.clock()
    await keeper.journal.run(
        _put_connection,
        project_id=project_id,
        name=name,
        kind=kind,
        sealed=keeper.vault.seal(plain, context=connection_context(project_id, name)),
        settings=msgspec.json.encode(settings).decode(),
        now_ms=now_ms,
        functions=allowed,
    )
    await keeper.catalogue.connections_changed(project_id)
    return now_ms


async def drop_connection(keeper: Keeper, project_id: str, name: str) -> None:
    """Delete a connection; deliveries that still wait for it fail and say so."""
    await keeper.journal.run(delete_connection, project_id, name)
    await keeper.catalogue.connections_changed(project_id)


def check_functions(names: Functions) -> Allowed:
    """Return the list of functions that may have something, each once; refuse what is no name."""
    if names is None or isinstance(names, UnsetType):
        return names
    if len(names) > FUNCTIONS_LISTED_MAX:
        raise Invalid(f"at most {FUNCTIONS_LISTED_MAX} names, not {len(names)}", "/functions")
    for position, name in enumerate(names):
        if not FUNCTION_NAME.fullmatch(name):
            raise Invalid(
                f"{name[:80]!r} is no function's name: a letter, then up to 63 letters, digits, "
                "_ or -",
                f"/functions/{position}",
            )
    return tuple(dict.fromkeys(names))


def _put_secret(
    connection: Connection,
    *,
    force: bool,
    project_id: str,
    name: str,
    functions: Allowed,
    **fields: Any,
) -> None:
    if get_connections(connection, [(project_id, name)]):
        raise Conflict(_TAKEN.format(name=name, other="connection"))
    known = get_secrets(connection, project_id, [name]).get(name)
    if not (force or known is None or isinstance(functions, UnsetType)):
        lost = [
            function
            for function in live_functions_with(connection, project_id, name)
            if may_use(known.functions, function) and not may_use(functions, function)
        ]
        if lost:
            raise Conflict(
                f"{name} is among the secrets of {_some(lost)}: they would run without it, and "
                "could not be deployed again. Deploy them without it first; or name them among its "
                "functions; or take it from them all the same with `cloudcode secret put --force`, "
                "?force=true in the API"
            )
    put_secret(connection, project_id=project_id, name=name, functions=functions, **fields)


def _put_connection(connection: Connection, *, project_id: str, name: str, **fields: Any) -> None:
    if get_secrets(connection, project_id, [name]):
        raise Conflict(_TAKEN.format(name=name, other="secret"))
    put_connection(connection, project_id=project_id, name=name, **fields)


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")


def _drop_secret(connection: Connection, project_id: str, name: str, *, force: bool) -> None:
    if not force and (bound := live_functions_with(connection, project_id, name)):
        raise Conflict(
            f"{name} is among the secrets of {_some(bound)}: they would run without it, and "
            "could not be deployed again. Deploy them without it first; or delete it all the same "
            f"with `cloudcode secret delete {name} --force`, ?force=true in the API"
        )
    delete_secret(connection, project_id, name)


def _check_name(name: str) -> None:
    if not VARIABLE_NAME.fullmatch(name):
        raise Invalid("must be a capital letter, then up to 63 capitals, digits or _", "{name}")
