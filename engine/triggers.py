"""Binds functions to what devices of a product do."""

from collections.abc import Iterable, Sequence
from typing import Final

from sqlalchemy import Connection

from engine.control import Control
from engine.durations import duration_ms
from engine.errors import Invalid, NotFound
from engine.ids import new_id
from engine.names import check_name
from engine.quotas import LATENESS_S_MAX, TRIGGER_KEYS_MAX
from engine.store.deployments import live_deployment
from engine.store.functions import VersionSummary, find_function, find_summaries
from engine.store.products import find_product
from engine.store.triggers import Trigger, delete_trigger, find_trigger, insert_trigger

NOT_YET: Final = "is not in this release"
ORDER: Final = "device"
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
    order: str | None = None,
    lateness_seconds: float | None = None,
) -> Trigger:
    """Run `function` after each write of a device of `product`; `keys`: only for these resources.

    With `order` "device" the runs of a device come one after another, in the order of their values'
    times; each waits for `lateness_seconds`, in case earlier ones are still on their way.

    Raises:
        Invalid: names the field; the function has no handler for device events.
    """
    _check(on, phase, keys)
    lateness_ms = _checked_order(order, lateness_seconds)
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
        order=order,
        lateness_ms=lateness_ms,
    )
    await control.catalogue.triggers_changed(trigger.product_id)
    return trigger


async def remove_trigger(control: Control, project_id: str, trigger_id: str) -> None:
    trigger = await control.journal.run(_delete, project_id, trigger_id)
    await control.catalogue.triggers_changed(trigger.product_id)


def without_handler(versions: Iterable[VersionSummary]) -> VersionSummary | None:
    """Return the first of these versions that could not take a device event."""
    return next((one for one in versions if not set(HANDLERS) & set(one.handlers)), None)


def limiting(versions: Iterable[VersionSummary]) -> VersionSummary | None:
    """Return the first of these versions that cannot run in order, for it has another limit."""
    flows = ((one, one.policy.flow) for one in versions)
    return next((one for one, flow in flows if flow and (flow.concurrency or flow.singleton)), None)


def why_not_in_order(version: VersionSummary) -> str:
    return (
        f"version {version.number} declares flow.concurrency or flow.singleton, and a run waits in "
        "one line only: runs in the order of devices need a version without them"
    )


def _check(on: str, phase: str, keys: Sequence[str]) -> None:
    if on != "write":
        raise Invalid(f"on: {on!r} {NOT_YET}; on must be 'write'", "/on")
    if phase != "after":
        raise Invalid(f"phase: {phase!r} {NOT_YET}; phase must be 'after'", "/phase")
    if len(keys) > TRIGGER_KEYS_MAX:
        raise Invalid(f"at most {TRIGGER_KEYS_MAX} keys, not {len(keys)}", "/keys")
    for position, key in enumerate(keys):
        check_name(key, f"/keys/{position}")


def _checked_order(order: str | None, lateness_seconds: float | None) -> int | None:
    """Return the lateness in milliseconds; None: there is no order."""
    if order not in {None, ORDER}:
        raise Invalid(f"{order!r:.80} is no order; leave it out, or set it to {ORDER!r}", "/order")
    if order is None and lateness_seconds is not None:
        raise Invalid(
            f"is for triggers in order: set order to {ORDER!r}, or leave it out",
            "/lateness_seconds",
        )
    if order is None:
        return None
    return duration_ms(lateness_seconds or 0, "/lateness_seconds", most_ms=LATENESS_S_MAX * 1000)


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
    order: str | None,
    lateness_ms: int | None,
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
    crowded = limiting(live_versions.values())
    if order is not None and crowded is not None:
        raise Invalid(f"{why_not_in_order(crowded)}: leave order out, or deploy one", "/order")
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
        order=order,
        lateness_ms=lateness_ms,
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
