"""Makes functions and versions: checks what was uploaded, builds it, stores what can run.

Path:   api.functions, api.versions -> here -> Builder (a cell) -> store; the live ones: deployments
Never:  stores a version that did not build; looks into an author's code in this process.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from sqlalchemy import Connection

from engine.allowed_hosts import check_allowed_hosts
from engine.bundles import Bundle, check_bundle
from engine.control import Control
from engine.deployments import NewId, check_secrets, put_live, whole
from engine.errors import CompileFailed, Conflict, NotFound
from engine.grants import check_secret_names, check_variables
from engine.ids import new_id
from engine.names import check_function_name, check_message
from engine.quotas import HANDLER_LIMITS, check_limits
from engine.store.cancellations import cancel_waiting
from engine.store.deployments import Deployment
from engine.store.functions import (
    Function,
    Version,
    delete_function,
    find_function,
    find_version,
    insert_function,
    insert_version,
    latest_version,
    name_taken,
    next_version_number,
)
from engine.store.triggers import triggers_of_function

BUILD_MEMORY_MB: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What a cell made of a bundle."""

    program: str  # JSON: what a cell evaluates
    handlers: tuple[str, ...]


class Builder(Protocol):
    """Port: turns an author's files into a program, in a cell. Adapter: `sandbox`."""

    async def build(self, files: dict[str, str], main: str, memory_mb: int) -> Built:
        """Compile and load the files once; within the sandbox's own deadline.

        Raises:
            CompileFailed: they do not compile, load, or fit; `extra` has file, line and column.
        """
        ...


class Workshop(Control, Protocol):
    """Port: what making a version needs besides."""

    @property
    def builder(self) -> Builder: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """One version as its author sent it; None: not sent."""

    source: str | None = None
    files: Mapping[str, str] | None = None
    main: str | None = None
    limits: Mapping[str, int] | None = None
    allowed_hosts: Sequence[str] | None = None
    variables: Mapping[str, str] | None = None
    secrets: Sequence[str] | None = None
    message: str = ""


async def create_function(
    workshop: Workshop, project_id: str, *, name: str, runtime: str, upload: Upload
) -> tuple[Function, Version]:
    """Make a function whose first version is live at once.

    Raises:
        Conflict: the name is taken.
        CompileFailed: nothing was stored.
    """
    check_function_name(name)
    if await workshop.database.read(find_function, project_id, name):
        raise Conflict(
            name_taken(name)
        )  # before the work of building; the writer decides in the end
    now_ms = workshop.clock()
    function = Function(
        id=new_id("fn"), project_id=project_id, name=name, runtime=runtime, created_ms=now_ms
    )
    version = await _build(workshop, function, upload, None)
    deployment = whole(version, new_id("dep"))
    await workshop.journal.run(_insert_first, function, version, deployment)
    await workshop.catalogue.function_changed(function.id)
    return function, version


async def create_version(
    workshop: Workshop, project_id: str, name: str, upload: Upload, *, deploy: bool
) -> Version:
    """Add a version; what the upload leaves out is as in the latest version.

    Raises:
        CompileFailed: nothing was stored.
    """
    function = await get_function(workshop, project_id, name)
    latest = await workshop.database.read(latest_version, function.id)
    draft = await _build(workshop, function, upload, latest)
    version = await workshop.journal.run(
        _insert_next, project_id, draft, deploy=deploy, new_id=new_id
    )
    if deploy:
        await workshop.catalogue.function_changed(function.id)
    return version


async def get_function(control: Control, project_id: str, asked: str) -> Function:
    """Return the function with this name or id."""
    function = await control.database.read(find_function, project_id, asked)
    if function is None:
        raise NotFound("function", asked)
    return function


async def get_version(control: Control, function: Function, number: int) -> Version:
    version = await control.database.read(find_version, function.id, number)
    if version is None:
        raise NotFound(f"version of {function.name}", str(number))
    return version


async def remove_function(control: Control, project_id: str, name: str) -> None:
    """Delete a function, its versions and triggers; runs that wait for it end as cancelled."""
    function_id, product_ids = await control.journal.run(_delete, project_id, name, control.clock())
    await control.catalogue.function_changed(function_id)
    for product_id in product_ids:
        await control.catalogue.triggers_changed(product_id)


async def _build(
    workshop: Workshop, function: Function, upload: Upload, latest: Version | None
) -> Version:
    bundle = check_bundle(upload.source, upload.files, upload.main)
    upload = _completed(upload, latest)
    limits, variables = dict(upload.limits or {}), dict(upload.variables or {})
    check_limits(limits, HANDLER_LIMITS)
    check_variables(variables)
    hosts = check_allowed_hosts(upload.allowed_hosts or ())
    secrets = check_secret_names(upload.secrets or (), variables)
    check_message(upload.message)
    built = await _compile(workshop.builder, bundle, limits.get("memory_mb", BUILD_MEMORY_MB))
    handlers = tuple(handler for handler in built.handlers if handler in HANDLER_LIMITS)
    if not handlers:
        raise CompileFailed(
            f"exports none of the handlers {', '.join(HANDLER_LIMITS)}",
            bundle.pointer(bundle.main),
            file=bundle.main,
            line=0,
            column=0,
        )
    check_limits(limits, handlers)
    return Version(
        id=new_id("ver"),
        function_id=function.id,
        number=1,  # of the first; the writer numbers later ones
        handlers=handlers,
        limits=limits,
        allowed_hosts=hosts,
        variables=variables,
        secrets=secrets,
        message=upload.message,
        created_ms=workshop.clock(),
        files=bundle.files,
        main=bundle.main,
        program=built.program,
    )


def _completed(upload: Upload, latest: Version | None) -> Upload:
    if latest is None:
        return upload
    taken_over = ("limits", "allowed_hosts", "variables", "secrets")
    missing = {name: getattr(latest, name) for name in taken_over if getattr(upload, name) is None}
    return replace(upload, **missing)


async def _compile(builder: Builder, bundle: Bundle, memory_mb: int) -> Built:
    try:
        return await builder.build(bundle.files, bundle.main, memory_mb)
    except CompileFailed as error:
        raise bundle.explain(error) from error


def _insert_first(
    connection: Connection, function: Function, version: Version, deployment: Deployment
) -> None:
    insert_function(connection, function)
    insert_version(connection, version)
    put_live(connection, function, deployment)


def _insert_next(
    connection: Connection, project_id: str, draft: Version, *, deploy: bool, new_id: NewId
) -> Version:
    function = find_function(connection, project_id, draft.function_id)
    if function is None:
        raise NotFound("function", draft.function_id)  # deleted while this was being built
    check_secrets(connection, project_id, draft)
    number = next_version_number(connection, function.id)
    version = replace(draft, id=new_id("ver"), number=number)
    insert_version(connection, version)
    if deploy:
        put_live(connection, function, whole(version, new_id("dep")))
    return version


def _delete(
    connection: Connection, project_id: str, name: str, now_ms: int
) -> tuple[str, set[str]]:
    function = find_function(connection, project_id, name)
    if function is None:
        raise NotFound("function", name)
    product_ids = {trigger.product_id for trigger in triggers_of_function(connection, function.id)}
    cancel_waiting(connection, function.id, function.name, now_ms)
    delete_function(connection, function.id)
    return function.id, product_ids
