"""Makes projects and API keys. A key is shown once and stored as a hash.

Path:   api.projects, api.api_keys, wiring (the first start) -> here -> store
Never:  keeps a key that it has handed out.
"""

import hashlib
import secrets as chance
from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection

from engine.control import Control
from engine.errors import Conflict, Invalid, NotFound
from engine.ids import new_id
from engine.names import check_name
from engine.store.api_keys import (
    ApiKey,
    count_admin_keys,
    delete_api_key,
    find_api_key,
    insert_api_key,
)
from engine.store.projects import Project, find_project, insert_project

KEY_PREFIX: Final = "cck_"
SCOPES: Final = ("admin", "develop", "operate", "ingest")
PROJECT_KEY_SCOPES: Final = ("develop", "operate", "ingest")  # of the key a new project comes with


def key_hash(key: str) -> str:
    """Return what is stored of a key. Plain SHA-256 will do: a key is 256 random bits."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def new_secret_key() -> str:
    """Return a new API key: `cck_` and 32 random bytes as 43 URL-safe characters."""
    return KEY_PREFIX + chance.token_urlsafe(32)


def make_key(
    secret: str, *, key_id: str, project_id: str, name: str, scopes: Sequence[str], now_ms: int
) -> ApiKey:
    """Return the row of the key `secret`.

    Raises:
        Invalid: a scope is unknown, double or missing, or the name is not one.
    """
    check_name(name)
    for position, scope in enumerate(scopes):
        if scope not in SCOPES:
            raise Invalid(f"is none of {', '.join(SCOPES)}", f"/scopes/{position}")
        if scope in scopes[:position]:
            raise Invalid(f"{scope} stands there already", f"/scopes/{position}")
    if not scopes:
        raise Invalid(f"must name at least one of {', '.join(SCOPES)}", "/scopes")
    return ApiKey(
        id=key_id,
        project_id=project_id,
        name=name,
        hash=key_hash(secret),
        scopes=tuple(scope for scope in SCOPES if scope in scopes),
        created_ms=now_ms,
    )


async def create_project(control: Control, name: str) -> tuple[Project, str]:
    """Make a project and its first key; return both, the key for the only time.

    Raises:
        Conflict: the name is taken.
    """
    check_name(name)
    now_ms = control.clock()
    project = Project(id=new_id("prj"), name=name, created_ms=now_ms)
    secret = new_secret_key()
    key = make_key(
        secret,
        key_id=new_id("key"),
        project_id=project.id,
        name="first key",
        scopes=PROJECT_KEY_SCOPES,
        now_ms=now_ms,
    )
    await control.journal.run(_insert_project, project, key)
    await control.catalogue.projects_changed()
    await control.catalogue.keys_changed()
    return project, secret


async def create_api_key(
    control: Control, *, project: str, name: str, scopes: Sequence[str]
) -> tuple[ApiKey, str]:
    """Make a key of the project with this id or name; return it with the secret, shown once."""
    owner = await control.database.read(find_project, project)
    if owner is None:
        raise Invalid(f"there is no project {project!r}", "/project")
    secret = new_secret_key()
    key = make_key(
        secret,
        key_id=new_id("key"),
        project_id=owner.id,
        name=name,
        scopes=scopes,
        now_ms=control.clock(),
    )
    await control.journal.run(insert_api_key, key)
    await control.catalogue.keys_changed()
    return key, secret


async def revoke_api_key(control: Control, key_id: str) -> None:
    """Delete a key; from then on it opens nothing.

    Raises:
        Conflict: it is the last admin key, and nobody could make another.
    """
    await control.journal.run(_revoke, key_id)
    await control.catalogue.keys_changed()


def _insert_project(connection: Connection, project: Project, key: ApiKey) -> None:
    insert_project(connection, project)
    insert_api_key(connection, key)


def _revoke(connection: Connection, key_id: str) -> None:
    key = find_api_key(connection, key_id)
    if key is None:
        raise NotFound("API key", key_id)
    if "admin" in key.scopes and count_admin_keys(connection) == 1:
        raise Conflict("this is the last admin key; make another before you delete it")
    delete_api_key(connection, key_id)
