"""`cloudcode doctor`: says what this machine gives the engine, and what to do about the rest.

Path:   Settings -> checks -> the layers of sandbox.lockdown.probe() -> screen
Never:  changes anything: what it makes to try it, it takes away again.
"""

import os
import platform
import re
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from inspect import Parameter
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final

import httpx
import typer

from engine.addresses import Reach, split_denied, why_forbidden
from engine.cli.serve import options, settings_from
from engine.cli.session import Session
from engine.settings import Settings

DISTRIBUTION: Final = "cloudcode-engine"
PYTHON_MIN: Final = (3, 11)
FREE_MB_MIN: Final = 256  # below it SQLite's log of a busy hour may not fit
ANSWER_S: Final = 2.0
_THIS_MACHINE: Final = (ip_address("127.0.0.1"), ip_address("::1"))
GROUP_OR_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing looked at. `required`: the engine refuses to start, or is unsafe, without it."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    required: bool = True
    lack: str = "missing"  # what it is called if it is not ok, and not required

    @property
    def state(self) -> str:
        return "ok" if self.ok else "FAILED" if self.required else self.lack


def doctor(session: Session, *, strict: bool, **given: str | None) -> None:
    """Look at this machine: isolation layers, versions, data directory, port and key file."""
    settings = settings_from(given)
    strict = strict or settings.isolation_required == "strict"
    checks = [*_checks(settings), *_layers(required=strict)]
    failed = [check for check in checks if check.required and not check.ok]
    document = {
        "ok": not failed,
        "isolation_required": "strict" if strict else "best_effort",
        "checks": [_shown(check) for check in checks],
        "versions": _versions(),
    }
    if session.as_json:
        session.screen.value(document)
    else:
        session.screen.text(document, "\n".join(_report(checks, document["versions"])))
    if failed:
        session.screen.say(f"failed: {', '.join(check.name for check in failed)}")
        raise typer.Exit(1)


def _shown(check: Check) -> dict[str, Any]:
    shown = asdict(check) | ({"remedy": ""} if check.ok else {})
    del shown["lack"]
    return shown


def parameters() -> list[Parameter]:
    """Return the command line's options: `--strict`, and the settings that the checks look at."""
    option = typer.Option("--strict", help="Fail when any layer of the lockdown is missing.")
    strict = Parameter(
        "strict", Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, option]
    )
    return [strict, *options("host", "port", "data_dir", "database_url")]


def _report(checks: list[Check], versions: Any) -> Iterator[str]:
    width = max(len(check.name) for check in checks)
    for check in checks:
        yield f"{check.state:7}  {check.name:<{width}}  {check.detail}"
        if check.remedy and not check.ok:
            yield f"{'':7}  {'':<{width}}  remedy: {check.remedy}"
    yield "versions  " + ", ".join(f"{name} {version}" for name, version in versions.items())


def _layers(*, required: bool) -> Iterator[Check]:
    from sandbox.lockdown import FILTER, probe  # loads the C library: only this verb needs it

    for layer in probe():
        yield Check(
            name=f"lockdown: {layer.name}",
            ok=layer.active,
            detail=layer.detail,
            remedy=layer.remedy,
            required=required,
        )
    # Only projects that ask for it need the last one, so its lack alone fails nothing.
    filtered = next(layer for layer in probe(hardened=True) if layer.name == FILTER)
    yield Check(
        name="isolation: hardened",
        ok=filtered.active,
        detail="no memory of a cell can become executable" if filtered.active else filtered.detail,
        remedy=filtered.remedy,
        required=False,
    )


def _checks(settings: Settings) -> Iterator[Check]:
    yield _python()
    yield _packages()
    yield _data_dir(settings.data_dir)
    yield _database(settings)
    yield _key_file(settings)
    yield _port(settings)
    yield _egress(settings)
    yield _memory(settings)


def _memory(settings: Settings) -> Check:
    from engine.memory_budget import budget_bytes, least_mb  # loads the dispatcher
    from runtimes.contract import MIB

    budget_mb = budget_bytes(settings.memory_budget_mb) // MIB
    needed_mb = least_mb(settings)
    return Check(
        name="memory budget",
        ok=budget_mb >= needed_mb,
        detail=f"{budget_mb} MB for all cells; those kept warm and a working one take {needed_mb}",
        remedy="raise CLOUDCODE_MEMORY_BUDGET_MB (0: 70 % of what there is), or lower "
        "CLOUDCODE_WARM_CELLS or CLOUDCODE_CELL_MEMORY_MB: working cells are ended for it",
        required=False,
        lack="small",
    )


def _egress(settings: Settings) -> Check:
    networks, hosts = split_denied(settings.egress_deny)
    reach = Reach(allow=settings.egress_allow, deny=networks, deny_hosts=hosts)
    opened = ", ".join(map(str, settings.egress_allow)) or "nothing"
    closed = ", ".join(settings.egress_deny) or "nothing more"
    gateways = ", ".join(map(str, settings.egress_nat64)) or "only 64:ff9b::/96"
    return Check(
        name="egress",
        ok=all(why_forbidden(address, reach) for address in _THIS_MACHINE),
        detail=f"not public, and opened: {opened}; closed: {closed}; NAT64: {gateways}",
        remedy="take this machine out of CLOUDCODE_EGRESS_ALLOW: functions reach its services",
        required=False,
        lack="open",
    )


def _python() -> Check:
    return Check(
        name="python",
        ok=sys.version_info >= PYTHON_MIN,
        detail=f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        remedy="use Python 3.11 or later",
    )


def _packages() -> Check:
    missing = [name for name, version in _versions().items() if version == "missing"]
    return Check(
        name="packages",
        ok=not missing,
        detail=f"missing: {', '.join(missing)}" if missing else "every one is installed",
        remedy="pip install cloudcode-engine",
    )


def _versions() -> dict[str, str]:
    try:
        required = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return {DISTRIBUTION: "missing"}
    names = [
        found[0]
        for line in required
        if "extra ==" not in line and (found := re.match(r"[A-Za-z0-9._-]+", line))
    ]
    return {name: _version(name) for name in (DISTRIBUTION, *names)}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def _data_dir(directory: Path) -> Check:
    found = directory.resolve()
    there = next(path for path in (found, *found.parents) if path.exists())
    remedy = f"make {found} writable for this user, or name another with --data-dir"
    try:
        with tempfile.TemporaryFile(dir=there):
            free_mb = shutil.disk_usage(there).free // 2**20
    except OSError as error:
        return Check(
            name="data directory", ok=False, detail=f"{there}: {error.strerror}", remedy=remedy
        )
    state = "writable" if there == found else "made at the first start"
    return Check(
        name="data directory",
        ok=free_mb >= FREE_MB_MIN,
        detail=f"{found}: {state}, {free_mb} MB free",
        remedy=f"free at least {FREE_MB_MIN} MB",
    )


def _database(settings: Settings) -> Check:
    from engine.store.database import Database  # half a second to load

    if not settings.database_url and not (settings.data_dir / "engine.db").exists():
        return Check(name="database", ok=True, detail="made at the first start")
    try:
        database = Database(settings.database())
        try:
            database.read_here(lambda connection: connection.exec_driver_sql("SELECT 1"))
            detail = f"opens ({database.url.get_backend_name()})"
        finally:
            database.close()
    except Exception as error:  # noqa: BLE001 - whatever a driver raises is the finding
        reason = str(error).splitlines()[0]
        return Check(
            name="database", ok=False, detail=reason, remedy="check CLOUDCODE_DATABASE_URL"
        )
    return Check(name="database", ok=True, detail=detail)


def _key_file(settings: Settings) -> Check:
    if settings.master_key is not None:
        return Check(name="master key", ok=True, detail="from the environment or an option")
    file = settings.data_dir / "master.key"
    try:
        status = file.stat()
    except FileNotFoundError:
        return Check(name="master key", ok=True, detail="made at the first start")
    except OSError as error:
        return Check(name="master key", ok=False, detail=f"{file}: {error.strerror}")
    mode = stat.S_IMODE(status.st_mode)
    private = not mode & GROUP_OR_OTHERS and status.st_uid == os.geteuid()
    return Check(
        name="master key",
        ok=private,
        detail=f"{file}: mode {mode:04o}, owner {status.st_uid}",
        remedy=f"chmod 600 {file}, owned by the user that runs the engine",
    )


def _port(settings: Settings) -> Check:
    where = f"{settings.host}:{settings.port}"
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((settings.host, settings.port))
    except OSError as error:
        if _is_engine(settings):
            return Check(name="port", ok=True, detail=f"{where} is used by a running engine")
        return Check(
            name="port",
            ok=False,
            detail=f"{where}: {error.strerror}",
            remedy="end what listens there, or name another port with --port",
        )
    return Check(name="port", ok=True, detail=f"{where} is free")


def _is_engine(settings: Settings) -> bool:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        answer = httpx.get(
            f"http://{host}:{settings.port}/healthz", timeout=ANSWER_S, trust_env=False
        )
        return bool(answer.json()["status"] == "ok")
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        return False
