"""Decides which versions of a function are live, and in what shares. The newest deployment counts.

Path:   api.deployments, functions -> here -> store.deployments; the catalogue reads the newest
Never:  makes a version live that lacks a secret, or the handler that a trigger needs.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from sqlalchemy import Connection

from engine.control import Control
from engine.errors import Conflict, FieldProblem, Invalid, NotFound
from engine.fires import HANDLERS as BY_THE_CLOCK
from engine.ids import new_id
from engine.names import check_message
from engine.store.breakers import forget_replaced
from engine.store.deployments import (
    Deployment,
    Share,
    deployment_before,
    insert_deployment,
    live_deployment,
)
from engine.store.functions import Function, VersionSummary, find_function, find_summaries
from engine.store.schedules import schedules_of_function
from engine.store.triggers import triggers_of_function
from engine.store.vaulted import get_secrets, may_use
from engine.triggers import HANDLERS, limiting, why_not_in_order, without_handler

SHARES_MAX: Final = 2
WHOLE: Final = 100

NewId = Callable[[str], str]
"""`engine.ids.new_id`. The newest id is live, so it is made inside the writer's transaction."""


class SecretsMissing(Invalid):
    """The caller's: a version needs secrets that its function does not get."""

    def __init__(self, problems: Sequence[FieldProblem]) -> None:
        super().__init__("; ".join(problem.message for problem in problems))
        self.problems = tuple(problems)


async def deploy(
    control: Control, project_id: str, name: str, shares: Sequence[Share], message: str = ""
) -> Deployment:
    """Make these versions live.

    Raises:
        Invalid: the shares are not 1 or 2 different versions that sum to 100 %, a version does
            not exist, lacks a secret, or lacks a handler that a trigger needs.
    """
    check_message(message)
    _check_shares(shares)
    deployment = await control.journal.run(
        _deploy,
        project_id,
        name,
        shares=tuple(shares),
        message=message,
        now_ms=control.clock(),
        new_id=new_id,
    )
    await control.catalogue.function_changed(deployment.function_id)
    return deployment


async def roll_back(control: Control, project_id: str, name: str) -> Deployment:
    """Deploy again what was live before what is live now.

    Raises:
        Conflict: nothing else was ever live.
    """
    deployment = await control.journal.run(
        _roll_back, project_id, name, now_ms=control.clock(), new_id=new_id
    )
    await control.catalogue.function_changed(deployment.function_id)
    return deployment


def whole(version: VersionSummary, deployment_id: str) -> Deployment:
    """Return the deployment of one version alone, made together with it."""
    return Deployment(
        id=deployment_id,
        function_id=version.function_id,
        versions=(Share(version=version.number, percent=WHOLE),),
        message=version.message,
        created_ms=version.created_ms,
    )


def put_live(connection: Connection, function: Function, deployment: Deployment) -> None:
    """Insert the deployment if each of its versions can run. In the writer's transaction."""
    numbers = [share.version for share in deployment.versions]
    found = find_summaries(connection, function.id, numbers)
    for position, number in enumerate(numbers):
        if number not in found:
            raise Invalid(
                f"{function.name} has no version {number}", f"/versions/{position}/version"
            )
        check_secrets(connection, function, found[number])
    lacking = without_handler(found.values())
    if lacking is not None and (bound := triggers_of_function(connection, function.id)):
        raise Invalid(
            f"version {lacking.number} has no {' or '.join(HANDLERS)}, which "
            f"{', '.join(trigger.id for trigger in bound[:3])} needs; its handlers: "
            f"{', '.join(lacking.handlers)}",
            "/versions",
        )
    _check_order(connection, function, found.values())
    _check_schedules(connection, function, found.values())
    before = live_deployment(connection, function.id)
    stay = {share.version for share in before.versions} if before else set()
    kept = [found[number].id for number in numbers if number in stay]
    forget_replaced(connection, function.id, kept, deployment.created_ms)
    insert_deployment(connection, deployment)


def check_secrets(connection: Connection, function: Function, version: VersionSummary) -> None:
    """Refuse a version that names secrets which its function cannot have; names each of them."""
    known = get_secrets(connection, function.project_id, version.secrets)
    missing = []
    for position, name in enumerate(version.secrets):
        found = known.get(name)
        if found is None:
            told = f"there is no secret {name}: store it with `cloudcode secret put {name}`"
        elif not may_use(found.functions, function.name):
            allowed = "".join(f" --function {one}" for one in found.functions or ())
            told = (
                f"the secret {name} is not for {function.name}: let it have it with `cloudcode "
                f"secret put {name}{allowed} --function {function.name}`"
            )
        else:
            continue
        missing.append(FieldProblem(f"/secrets/{position}", told))
    if missing:
        raise SecretsMissing(missing)


def _check_order(
    connection: Connection, function: Function, versions: Iterable[VersionSummary]
) -> None:
    """Refuse a version with a limit that a trigger in order could not keep."""
    crowded = limiting(versions)
    if crowded is None:
        return
    ordered = [one.id for one in triggers_of_function(connection, function.id) if one.order]
    if ordered:
        raise Invalid(
            f"{why_not_in_order(crowded)}, and {', '.join(ordered[:3])} asks for that order",
            "/versions",
        )


def _check_schedules(
    connection: Connection, function: Function, versions: Iterable[VersionSummary]
) -> None:
    """Refuse a version that a schedule of the function could not run."""
    lacking = next((one for one in versions if not set(BY_THE_CLOCK) & set(one.handlers)), None)
    if lacking is not None and (bound := schedules_of_function(connection, function.id, limit=3)):
        raise Invalid(
            f"version {lacking.number} has no {' or '.join(BY_THE_CLOCK)}, which the schedule "
            f"{', '.join(bound)} needs; its handlers: {', '.join(lacking.handlers)}",
            "/versions",
        )


def _check_shares(shares: Sequence[Share]) -> None:
    if not 1 <= len(shares) <= SHARES_MAX:
        raise Invalid(f"must be 1 to {SHARES_MAX} versions, not {len(shares)}", "/versions")
    for position, share in enumerate(shares):
        if not 1 <= share.percent <= WHOLE:
            raise Invalid(f"must be 1 to {WHOLE}", f"/versions/{position}/percent")
    total = sum(share.percent for share in shares)
    if total != WHOLE:
        raise Invalid(f"the percents sum to {total}; they must sum to {WHOLE}", "/versions")
    if len({share.version for share in shares}) != len(shares):
        raise Invalid("the versions must differ", "/versions")


def _deploy(
    connection: Connection,
    project_id: str,
    name: str,
    *,
    shares: tuple[Share, ...],
    message: str,
    now_ms: int,
    new_id: NewId,
) -> Deployment:
    function = _function(connection, project_id, name)
    deployment = Deployment(
        id=new_id("dep"),
        function_id=function.id,
        versions=shares,
        message=message,
        created_ms=now_ms,
    )
    put_live(connection, function, deployment)
    return deployment


def _roll_back(
    connection: Connection, project_id: str, name: str, *, now_ms: int, new_id: NewId
) -> Deployment:
    function = _function(connection, project_id, name)
    live = live_deployment(connection, function.id)
    before = deployment_before(connection, live) if live else None
    if before is None:
        raise Conflict(f"{name} has no deployment before the live one")
    deployment = Deployment(
        id=new_id("dep"),
        function_id=function.id,
        versions=before.versions,
        message=f"rollback to {before.id}",
        created_ms=now_ms,
    )
    put_live(connection, function, deployment)
    return deployment


def _function(connection: Connection, project_id: str, name: str) -> Function:
    function = find_function(connection, project_id, name)
    if function is None:
        raise NotFound("function", name)
    return function
