"""Makes projects and API keys, says what each may use. A key is shown once and stored as a hash.

Path:   api.projects, api.api_keys, wiring (the first start) -> here -> store
Never:  keeps a key that it has handed out.
"""

import hashlib
import math
import secrets as chance
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec
from sqlalchemy import Connection

from engine.allowances import Allowances
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
    update_api_key,
)
from engine.store.projects import Project, find_project, insert_project, update_project

KEY_PREFIX: Final = "cck_"
SCOPES: Final = ("admin", "develop", "operate", "ingest")
PROJECT_KEY_SCOPES: Final = ("develop", "operate", "ingest")  # of the key a new project comes with
ISOLATIONS: Final = ("standard", "hardened")  # see runtimes.contract.CellKind
ALLOWANCE_MAX: Final = 1_000_000_000  # who needs more says 0: without a limit
ALLOWANCE_MIN: Final = 0.001  # of CPU seconds; less would show as 0, which means no limit
CURRENT: Final = "current"  # in paths: the key's own project
ID_PREFIX: Final = "prj_"


def key_hash(key: str) -> str:
    """Return what is stored of a key. Plain SHA-256 will do: a key is 256 random bits."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def new_secret_key() -> str:
    """Return a new API key: `cck_` and 32 random bytes as 43 URL-safe characters."""
    return KEY_PREFIX + chance.token_urlsafe(32)


def make_key(
    secret: str,
    *,
    key_id: str,
    project_id: str,
    name: str,
    scopes: Sequence[str],
    now_ms: int,
    requests_per_minute: int | None = None,
) -> ApiKey:
    """Return the row of the key `secret`.

    Raises:
        Invalid: a scope is unknown, double or missing, the name is not one, or the rate.
    """
    check_name(name)
    check_allowance(requests_per_minute, "/requests_per_minute")
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
        requests_per_minute=requests_per_minute,
    )


def check_allowance(value: float | None, pointer: str) -> None:
    """Refuse what is no amount: None (as set for all), 0 (no limit), or within these bounds.

    Raises:
        Invalid: names the field.
    """
    if value and not (math.isfinite(value) and ALLOWANCE_MIN <= value <= ALLOWANCE_MAX):
        least = ALLOWANCE_MIN if isinstance(value, float) else 1
        raise Invalid(f"must be 0 (no limit), {least} to {ALLOWANCE_MAX}, or null", pointer)


def check_project_name(name: str) -> None:
    """Refuse what no path or header could name: it stands in URLs, beside ids and `current`.

    Raises:
        Invalid: it is no name, or one of these.
    """
    check_name(name)
    if "/" in name or name in (CURRENT, ".", "..") or name.startswith(ID_PREFIX):
        raise Invalid(
            f"must be without /, and neither {CURRENT}, . nor .., nor begin with {ID_PREFIX} "
            "as ids do: no URL could name the project",
            "/name",
        )


async def create_project(
    control: Control,
    name: str,
    *,
    isolation: str = "standard",
    allowances: Mapping[str, float | None] | None = None,
) -> tuple[Project, str]:
    """Make a project and its first key; return both, the key for the only time.

    Raises:
        Invalid: the name, the isolation or an allowance is none.
        Conflict: the name is taken.
    """
    check_project_name(name)
    now_ms = control.clock()
    project = _changed(
        Project(id=new_id("prj"), name=name, created_ms=now_ms), isolation, allowances or {}
    )
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


async def change_project(
    control: Control,
    project_id: str,
    *,
    isolation: str | None,
    allowances: Mapping[str, float | None],
) -> Project:
    """Change how the project's code is walled in and what it may use; return it as it is now.

    On return no run of the project begins in a cell of the former kind on this node; on others
    not after they have heard of it, within a second.

    Args:
        control: of the control plane.
        project_id: whose.
        isolation: one of ISOLATIONS; None: as it is.
        allowances: what is to change, by the names of `engine.allowances.Allowances`; None as a
            value: as the operator has set it for all.

    Raises:
        Invalid: the isolation or an allowance is none.
        NotFound: there is no such project.
    """
    project = await control.journal.run(_change_project, project_id, isolation, allowances)
    await control.catalogue.projects_changed()
    return project


async def create_api_key(
    control: Control,
    *,
    project: str,
    name: str,
    scopes: Sequence[str],
    requests_per_minute: int | None = None,
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
        requests_per_minute=requests_per_minute,
    )
    await control.journal.run(insert_api_key, key)
    await control.catalogue.keys_changed()
    return key, secret


async def change_api_key(
    control: Control, key_id: str, *, requests_per_minute: int | None
) -> ApiKey:
    """Say how many requests the key may make; None: what its project allows each of its keys.

    Raises:
        Invalid: that is no amount.
        NotFound: there is no such key.
    """
    check_allowance(requests_per_minute, "/requests_per_minute")
    key = await control.journal.run(_change_key, key_id, requests_per_minute)
    await control.catalogue.keys_changed()
    return key


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


def _change_project(
    connection: Connection,
    project_id: str,
    isolation: str | None,
    allowances: Mapping[str, float | None],
) -> Project:
    found = find_project(connection, project_id)
    if found is None:
        raise NotFound("project", project_id)
    project = _changed(found, isolation or found.isolation, allowances)
    update_project(connection, project)
    return project


def _changed(project: Project, isolation: str, allowances: Mapping[str, float | None]) -> Project:
    if isolation not in ISOLATIONS:
        raise Invalid(f"is none of {', '.join(ISOLATIONS)}", "/isolation")
    for name, value in allowances.items():
        check_allowance(value, f"/allowances/{name}")
    # Their types were checked where they were read; -0.0 is no limit, too, and becomes 0.0.
    changes: dict[str, Any] = {
        name: None if value is None else value + 0 for name, value in allowances.items()
    }
    changed: Allowances = msgspec.structs.replace(project.allowances, **changes)
    return replace(project, isolation=isolation, allowances=changed)


def _change_key(connection: Connection, key_id: str, requests_per_minute: int | None) -> ApiKey:
    key = find_api_key(connection, key_id)
    if key is None:
        raise NotFound("API key", key_id)
    changed = replace(key, requests_per_minute=requests_per_minute)
    update_api_key(connection, changed)
    return changed


def _revoke(connection: Connection, key_id: str) -> None:
    key = find_api_key(connection, key_id)
    if key is None:
        raise NotFound("API key", key_id)
    if "admin" in key.scopes and count_admin_keys(connection) == 1:
        raise Conflict("this is the last admin key; make another before you delete it")
    delete_api_key(connection, key_id)
