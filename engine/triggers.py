"""Binds functions to what devices of a product do."""

from collections.abc import Iterable, Sequence
from typing import Final

from sqlalchemy import Connection

from engine.control import Control
from engine.errors import Invalid, NotFound
from engine.ids import new_id
from engine.names import check_name
from engine.quotas import TRIGGER_KEYS_MAX
from engine.store.deployments import live_deployment
from engine.store.functions import VersionSummary, find_function, find_summaries
from engine.store.products import find_product
from engine.store.triggers import Trigger, delete_trigger, find_trigger, insert_trigger

NOT_YET: Final = "is not in this release"
HANDLERS: Final = ("trigger", "afterStore")  # either can take a device event


async def create_trigger(
    control: Control,
    project_id: str,
    *,
    function: str,
    product: str,
    on: str = "write",
    phase: str = "after",
    keys: Sequence[str] = (),
) -> Trigger:
    """Run `function` after each write of a device of `product`; `keys`: only for these resources.

    Raises:
        Invalid: names the field; the function has no handler for device events.
    """
    _check(on, phase, keys)
    trigger = await control.journal.run(
        _insert,
        project_id,
        trigger_id=new_id("trg"),
        now_ms=control.clock(),
        function=function,
        product=product,
        on=on,
        phase=phase,
        keys=keys,
    )
    await control.catalogue.triggers_changed(trigger.product_id)
    return trigger


async def remove_trigger(control: Control, project_id: str, trigger_id: str) -> None:
    trigger = await control.journal.run(_delete, project_id, trigger_id)
    await control.catalogue.triggers_changed(trigger.product_id)


def without_handler(versions: Iterable[VersionSummary]) -> VersionSummary | None:
    """Return the first of these versions that could not take a device event."""
    return next((one for one in versions if not set(HANDLERS) & set(one.handlers)), None)


def _check(on: str, phase: str, keys: Sequence[str]) -> None:
    if on != "write":
        raise Invalid(f"on: {on!r} {NOT_YET}; on must be 'write'", "/on")
    if phase != "after":
        raise Invalid(f"phase: {phase!r} {NOT_YET}; phase must be 'after'", "/phase")
    if len(keys) > TRIGGER_KEYS_MAX:
        raise Invalid(f"at most {TRIGGER_KEYS_MAX} keys, not {len(keys)}", "/keys")
    for position, key in enumerate(keys):
        check_name(key, f"/keys/{position}")


def _insert(
    connection: Connection,
    project_id: str,
    *,
    trigger_id: str,
    now_ms: int,
    function: str,
    product: str,
    on: str,
    phase: str,
    keys: Sequence[str],
) -> Trigger:
    code = find_function(connection, project_id, function)
    if code is None:
        raise Invalid(f"there is no function {function[:80]!r} in this project", "/function")
    kind = find_product(connection, project_id, product)
    if kind is None:
        raise Invalid(f"there is no product {product[:80]!r} in this project", "/product")
    live = live_deployment(connection, code.id)
    shares = live.versions if live else ()
    live_versions = find_summaries(connection, code.id, [share.version for share in shares])
    lacking = without_handler(live_versions.values())
    if lacking is not None:
        raise Invalid(
            f"version {lacking.number} of {code.name} has no handler for this: it needs "
            f"{' or '.join(HANDLERS)} and has {', '.join(lacking.handlers)}",
            "/function",
        )
    trigger = Trigger(
        id=trigger_id,
        project_id=project_id,
        function_id=code.id,
        function=code.name,
        product_id=kind.id,
        product=kind.name,
        on=on,
        phase=phase,
        keys=tuple(dict.fromkeys(keys)),
        created_ms=now_ms,
    )
    insert_trigger(connection, trigger)
    return trigger


def _delete(connection: Connection, project_id: str, trigger_id: str) -> Trigger:
    trigger = find_trigger(connection, project_id, trigger_id)
    if trigger is None:
        raise NotFound("trigger", trigger_id)
    delete_trigger(connection, project_id, trigger_id)
    return trigger
