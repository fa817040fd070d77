"""Makes functions and versions: checks what was uploaded, builds it, stores what can run.

Path:   api.functions, api.versions -> here -> Builder (a cell) -> store; the live ones: deployments
Never:  stores a version that did not build; looks into an author's code in this process.
"""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from sqlalchemy import Connection

from engine.allowed_hosts import check_allowed_hosts
from engine.bundles import (
    EXPORT_DEFAULTS,
    Bundle,
    Module,
    check_bundle,
    check_module,
    check_options,
)
from engine.control import Catalogue, Control
from engine.declarations import declared, for_handlers
from engine.deployments import NewId, check_secrets, put_live, whole
from engine.errors import CompileFailed, Conflict, Invalid, NotFound
from engine.grants import check_secret_names, check_variables
from engine.ids import new_id
from engine.names import check_function_name, check_message
from engine.policies import NONE
from engine.programs import Builder, Built, Programs, Recipe
from engine.quotas import HANDLER_LIMITS, check_limits, least_memory_mb
from engine.store.artifacts import find_wasm, insert_module
from engine.store.cancellations import cancel_waiting
from engine.store.deployments import Deployment
from engine.store.functions import (
    Function,
    Version,
    WasmFacts,
    delete_function,
    find_function,
    find_version,
    insert_function,
    insert_version,
    latest_version,
    name_taken,
    next_version_number,
)
from engine.store.schedules import let_go
from engine.store.triggers import triggers_of_function
from runtimes.contract import Runtime, SourceWarning

BUILD_MEMORY_MB: Final = 64
COMMAND: Final = "command"  # of the two kinds of module the one that reads stdin
OF_JAVASCRIPT: Final = ("source", "files", "main")  # fields of an upload
OF_WASM: Final = ("wasm", "args", "io", "exports", "reuse", "handlers")


class Isolating(Catalogue, Protocol):
    """Port: knows projects, too."""

    def hardened(self, project_id: str) -> bool:
        """Say in which kind of cell the project's code is compiled and runs."""
        ...


class Workshop(Control, Protocol):
    """Port: what making a version needs besides."""

    @property
    def catalogue(self) -> Isolating: ...

    @property
    def builder(self) -> Builder: ...

    @property
    def programs(self) -> Programs: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """One version as its author sent it; None: not sent."""

    source: str | None = None
    files: Mapping[str, str] | None = None
    main: str | None = None
    wasm: bytes | None = field(default=None, repr=False)
    handlers: Sequence[str] | None = None
    args: Sequence[str] | None = None
    io: str | None = None
    exports: Mapping[str, str] | None = None
    reuse: bool | None = None
    limits: Mapping[str, int] | None = None
    allowed_hosts: Sequence[str] | None = None
    variables: Mapping[str, str] | None = None
    secrets: Sequence[str] | None = None
    retries: Mapping[str, Any] | None = None  # these three: see engine.declarations
    flow: Mapping[str, Any] | None = None
    queue: Mapping[str, Any] | None = None
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    """A version that was built, with what is stored beside its row."""

    version: Version
    wasm: bytes = field(default=b"", repr=False)
    program: bytes = field(repr=False)
    hardened: bool  # which cells the program is for
    warnings: tuple[SourceWarning, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A version that was stored; `warnings` are for who uploaded it, and kept nowhere."""

    function: Function
    version: Version
    warnings: tuple[SourceWarning, ...]


async def create_function(
    workshop: Workshop, project_id: str, *, name: str, runtime: str | None, upload: Upload
) -> Made:
    """Make a function whose first version is live at once.

    Args:
        workshop: what it takes.
        project_id: whose function it is.
        name: of the function.
        runtime: a Runtime; None: the one that `upload` is for.
        upload: its first version.

    Raises:
        Invalid: a field is wrong, or is none of the runtime's.
        Conflict: the name is taken.
        CompileFailed: nothing was stored.
    """
    check_function_name(name)
    if runtime is None:
        runtime = Runtime.JAVASCRIPT if upload.wasm is None else Runtime.WASM
    _check_fields(upload, Runtime(runtime))
    if await workshop.database.read(find_function, project_id, name):
        # Before the work of building; the writer decides in the end.
        raise Conflict(name_taken(name))
    now_ms = workshop.clock()
    function = Function(
        id=new_id("fn"), project_id=project_id, name=name, runtime=str(runtime), created_ms=now_ms
    )
    draft = await _build(workshop, function, upload, None)
    deployment = whole(draft.version, new_id("dep"))
    await workshop.journal.run(_insert_first, function, draft, deployment, workshop.programs)
    _keep(workshop, draft.version, draft)
    await workshop.catalogue.function_changed(function.id)
    return Made(function=function, version=draft.version, warnings=draft.warnings)


async def create_version(
    workshop: Workshop, project_id: str, name: str, upload: Upload, *, deploy: bool
) -> Made:
    """Add a version; what the upload leaves out is as in the latest version.

    Raises:
        Invalid: a field is wrong, or is of another runtime than the function's.
        CompileFailed: nothing was stored.
    """
    function = await get_function(workshop, project_id, name)
    _check_fields(upload, Runtime(function.runtime), of=function.name)
    latest = await workshop.database.read(latest_version, function.id)
    draft = await _build(workshop, function, upload, latest)
    version = await workshop.journal.run(
        _insert_next, project_id, draft, workshop.programs, deploy=deploy, new_id=new_id
    )
    _keep(workshop, version, draft)
    if deploy:
        await workshop.catalogue.function_changed(function.id)
    return Made(function=function, version=version, warnings=draft.warnings)


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


async def get_wasm(control: Control, function: Function, number: int) -> bytes:
    """Return the module of a version, as it was uploaded."""
    version = await get_version(control, function, number)
    wasm = await control.database.read(find_wasm, version.id)
    if wasm is None:
        raise NotFound(f"WebAssembly module in {function.name} ({function.runtime})", str(number))
    return wasm


async def remove_function(control: Control, project_id: str, name: str) -> None:
    """Delete a function, its versions and triggers; runs that wait for it end as cancelled."""
    function_id, product_ids = await control.journal.run(_delete, project_id, name, control.clock())
    await control.catalogue.function_changed(function_id)
    for product_id in product_ids:
        await control.catalogue.triggers_changed(product_id)


async def _build(
    workshop: Workshop, function: Function, upload: Upload, latest: Version | None
) -> _Draft:
    runtime, given = Runtime(function.runtime), upload
    upload = _completed(upload, latest)
    if runtime is Runtime.WASM:
        options = check_options(
            upload.handlers, upload.args, upload.io, upload.exports, upload.reuse
        )
        package: Bundle | Module = check_module(upload.wasm, options)
    else:
        package = check_bundle(upload.source, upload.files, upload.main)
    policy = declared(upload.retries, upload.flow, upload.queue, latest.policy if latest else NONE)
    version = replace(_checked(workshop, function, upload, package), policy=policy)
    if isinstance(package, Module):
        return await _build_module(workshop, function, version, package, given)
    return await _build_bundle(workshop, function, version, package, given)


def _checked(
    workshop: Workshop, function: Function, upload: Upload, package: Bundle | Module
) -> Version:
    """Return the version as far as it is known without building it."""
    limits, variables = dict(upload.limits or {}), dict(upload.variables or {})
    handlers = package.options.handlers if isinstance(package, Module) else tuple(HANDLER_LIMITS)
    check_limits(limits, handlers, Runtime(function.runtime))
    check_variables(variables)
    hosts = check_allowed_hosts(upload.allowed_hosts or ())
    secrets = check_secret_names(upload.secrets or (), variables)
    check_message(upload.message)
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
        options={},
        wasm=None,
        files={},
        main="",
        program="",
    )


async def _build_bundle(
    workshop: Workshop, function: Function, version: Version, bundle: Bundle, given: Upload
) -> _Draft:
    recipe = Recipe(
        runtime=Runtime.JAVASCRIPT,
        project_id=function.project_id,
        name=function.name,
        body=bundle.body,
        main=bundle.main,
        memory_mb=version.limits.get("memory_mb", BUILD_MEMORY_MB),
        hardened=workshop.catalogue.hardened(function.project_id),
    )
    built = await _compile(workshop.builder, recipe, bundle)
    handlers = tuple(handler for handler in built.handlers if handler in HANDLER_LIMITS)
    if not handlers:
        raise CompileFailed(
            f"exports none of the handlers {', '.join(HANDLER_LIMITS)}; `main` is for classic "
            "scripts: in a module write `export default async function`",
            bundle.pointer(bundle.main),
            file=bundle.main,
            line=0,
            column=0,
        )
    check_limits(version.limits, handlers)
    version = replace(
        version,
        handlers=handlers,
        policy=for_handlers(version.policy, handlers, said=given.queue is not None),
        created_ms=workshop.clock(),
        files=bundle.files,
        main=bundle.main,
        program=built.program.decode(),
    )
    return _Draft(
        version=version,
        program=built.program,
        hardened=recipe.hardened,
        warnings=built.warnings,
    )


async def _build_module(
    workshop: Workshop, function: Function, version: Version, module: Module, given: Upload
) -> _Draft:
    policy = for_handlers(version.policy, version.handlers, said=given.queue is not None)
    version = replace(version, policy=policy)
    recipe = Recipe(
        runtime=Runtime.WASM,
        project_id=function.project_id,
        name=function.name,
        body=module.wasm,
        options=module.options.as_json(),
        memory_mb=least_memory_mb(version.handlers, version.limits),
        fuel=version.limits.get("fuel", 0),
        hardened=workshop.catalogue.hardened(function.project_id),
    )
    built = await _compile(workshop.builder, recipe, module)
    options = recipe.options
    if built.kind == COMMAND:
        _check_command(given)
        options = options | {"exports": dict(EXPORT_DEFAULTS), "reuse": False}  # as if never said
    sha256 = await asyncio.to_thread(hashlib.sha256, module.wasm)
    facts = WasmFacts(kind=built.kind, bytes=len(module.wasm), sha256=sha256.hexdigest())
    version = replace(version, created_ms=workshop.clock(), options=options, wasm=facts)
    return _Draft(
        version=version, wasm=module.wasm, program=built.program, hardened=recipe.hardened
    )


def _check_fields(upload: Upload, runtime: Runtime, of: str = "") -> None:
    """Refuse fields of another runtime; `of`: the function that has this one already."""
    foreign = OF_JAVASCRIPT if runtime is Runtime.WASM else OF_WASM
    other = Runtime.JAVASCRIPT if runtime is Runtime.WASM else Runtime.WASM
    for name in foreign:
        if getattr(upload, name) is None:
            continue
        remedy = f"leave {name} out"
        if name == foreign[0] and of:
            remedy = f"make another function of it, or delete {of} first"
        elif name == foreign[0]:
            remedy = f'set runtime to "{other}", or leave {name} out'
        what = f"{of} is {runtime}" if of else f"the runtime here is {runtime}"
        raise Invalid(f"{name} is for the runtime {other}, and {what}: {remedy}", f"/{name}")


def _check_command(given: Upload) -> None:
    """Refuse what only a module with `alloc` and `handle` understands; what was inherited goes."""
    why = "the module was taken as a WASI command, by its _start: it does not export all of memory"
    if given.exports is not None and dict(given.exports) != dict(EXPORT_DEFAULTS):
        named = {**EXPORT_DEFAULTS, **given.exports}
        raise Invalid(
            f"{why}, {named['alloc']} and {named['handle']}. Correct the names, or leave exports "
            "out",
            "/exports",
        )
    if given.reuse:
        raise Invalid(
            f"{why}, alloc and handle. A command starts anew for each run: leave reuse out",
            "/reuse",
        )


def _completed(upload: Upload, latest: Version | None) -> Upload:
    if latest is None:
        return upload
    taken_over = ("limits", "allowed_hosts", "variables", "secrets")
    known = {name: getattr(latest, name) for name in taken_over} | latest.options
    missing = {name: value for name, value in known.items() if getattr(upload, name) is None}
    return replace(upload, **missing)


async def _compile(builder: Builder, recipe: Recipe, package: Bundle | Module) -> Built:
    try:
        return await builder.build(recipe, is_asked=True)
    except CompileFailed as error:
        raise package.explain(error) from error


def _keep(workshop: Workshop, version: Version, draft: _Draft) -> None:
    if version.wasm is not None:
        # Before its first run asks for it.
        workshop.programs.keep(version.id, draft.program, hardened=draft.hardened)


def _insert_first(
    connection: Connection,
    function: Function,
    draft: _Draft,
    deployment: Deployment,
    programs: Programs,
) -> None:
    insert_function(connection, function)
    _insert(connection, function.project_id, draft.version, draft, programs)
    put_live(connection, function, deployment)


def _insert_next(
    connection: Connection,
    project_id: str,
    draft: _Draft,
    programs: Programs,
    *,
    deploy: bool,
    new_id: NewId,
) -> Version:
    function = find_function(connection, project_id, draft.version.function_id)
    if function is None:
        raise NotFound("function", draft.version.function_id)  # deleted while this was being built
    check_secrets(connection, function, draft.version)
    number = next_version_number(connection, function.id)
    version = replace(draft.version, id=new_id("ver"), number=number)
    _insert(connection, project_id, version, draft, programs)
    if deploy:
        put_live(connection, function, whole(version, new_id("dep")))
    return version


def _insert(
    connection: Connection, project_id: str, version: Version, draft: _Draft, programs: Programs
) -> None:
    insert_version(connection, version)
    if version.wasm is None:
        return
    insert_module(connection, version.id, version.wasm, draft.wasm)
    programs.insert(connection, project_id, version.id, draft.program, hardened=draft.hardened)


def _delete(
    connection: Connection, project_id: str, name: str, now_ms: int
) -> tuple[str, set[str]]:
    function = find_function(connection, project_id, name)
    if function is None:
        raise NotFound("function", name)
    product_ids = {trigger.product_id for trigger in triggers_of_function(connection, function.id)}
    cancel_waiting(connection, function.id, function.name, now_ms)
    let_go(connection, function.id)
    delete_function(connection, function.id)
    return function.id, product_ids
