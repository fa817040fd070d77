"""Looks after connections to providers: makes them, asks whether they work, opens them again.

Path:   api.connections -> here -> vaulted, connectors, ledger
Never:  gives a credential back, nor lets a provider's answer do so; counts a trial as a delivery
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec
import structlog
from msgspec import UNSET

from engine import vaulted
from engine.connectors import CONNECTORS
from engine.connectors.contract import (
    EVERYTHING,
    SEND,
    SEND_MS_MAX,
    Answer,
    Connector,
    Outgoing,
    Retry,
    Sent,
)
from engine.deliveries import State, sending_of
from engine.egress import Egress
from engine.errors import Conflict, HostCallRefused, Invalid, NotFound
from engine.hostcalls.connections import as_key
from engine.ids import new_id
from engine.ledger import Sender, change_matching
from engine.scrub import printable, scrubbed
from engine.store.delivery_actions import Action
from engine.store.delivery_views import DeliveryFilter
from engine.store.gate_actions import open_again
from engine.store.gates import Key
from engine.store.turns import count_one
from engine.store.vaulted import Allowed, StoredConnection, get_connection
from engine.vault import connection_context

TEST_S_MAX: Final = SEND_MS_MAX / 1000 + 5  # an attempt keeps its own time; this is for a bug in it
# Settings that say to whom the credentials go, or who could read them on their way.
_LEADS: Final = ("base_url", "host", "port", "security", "ca_pem")
NO_ANSWER: Final = f"no answer within {TEST_S_MAX:g} s"

_log: Final = structlog.get_logger()


class Providers(vaulted.Keeper, Sender, Protocol):
    """Port: what looking after connections needs."""

    @property
    def providers(self) -> Egress:
        """Return the way out to providers."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What a provider said to a test."""

    answer: Answer
    detail: str
    took_ms: int
    delivery_id: str | None


async def put(
    platform: Providers,
    project_id: str,
    name: str,
    *,
    kind: str,
    credentials: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    functions: Allowed = UNSET,
) -> None:
    """Make a connection, or change it: what is not given stays, if it is of the same kind.

    Args:
        platform: what is open.
        project_id: whose.
        name: its name.
        kind: the provider.
        credentials: None keeps those that are stored. Others open it again.
        settings: None keeps those that are stored.
        functions: those that may use it; None: all.

    Raises:
        Invalid: names the field that is wrong.
    """
    new, kept = credentials is not None, None
    if credentials is None or settings is None:
        kept = await _kept(platform, project_id, name, kind)
    if credentials is None:
        if kept is None and kind in CONNECTORS:
            raise Invalid(f"is required: there is no {name[:80]} of this kind yet", "/credentials")
        credentials = {} if kept is None else _opened(platform, project_id, kept)
    if settings is None:
        settings = {} if kept is None else msgspec.json.decode(kept.settings)
    elif not new and kept is not None:
        before = msgspec.json.decode(kept.settings)
        if any(settings.get(name) != before.get(name) for name in _LEADS):
            raise Invalid(
                "give the credentials again: they would go to another server", "/credentials"
            )
    await vaulted.keep_connection(
        platform,
        project_id,
        name,
        kind=kind,
        credentials=credentials,
        settings=settings,
        functions=functions,
    )
    if new:
        await enable(platform, project_id, name)


async def enable(platform: Providers, project_id: str, name: str) -> int:
    """Send through a connection again that has failed; return how many were held for it.

    They are released, as far as the cost guard lets them.

    Raises:
        NotFound: there is none of that name.
    """
    await platform.database.read(get_connection, project_id, name)
    await platform.journal.run_alone(open_again, project_id, name)
    wanted = DeliveryFilter(states=(State.HELD,), connection=name, disabled=True)
    done = await change_matching(platform, project_id, Action.RELEASE, wanted, clear=False)
    return done.count


async def try_out(
    platform: Providers,
    project_id: str,
    name: str,
    *,
    message: Mapping[str, Any] | None = None,
    action: str = SEND,
) -> Trial:
    """Ask a provider whether it takes the credentials; or, with a `message`, send that at once.

    Raises:
        NotFound: there is none of that name.
        Conflict: this release has no connector for it, or the cost guard lets no message pass.
        Invalid: the connector cannot do `action`, or `message` is wrong; names the field.
    """
    stored: StoredConnection = await platform.database.read(get_connection, project_id, name)
    connector = CONNECTORS.get(stored.kind)
    if connector is None:
        raise Conflict(f"this release has no connector for {stored.kind}")
    credentials = _opened(platform, project_id, stored)
    settings = msgspec.json.decode(stored.settings)
    begun_ms = platform.clock()
    outgoing = None
    if message is not None:
        outgoing = _outgoing(connector, action, message, credentials, settings, begun_ms)
        await _count(platform, (project_id, name), connector, outgoing)
    try:
        async with asyncio.timeout(TEST_S_MAX):
            answer = await (
                connector.send(platform.providers, outgoing)
                if outgoing is not None
                else connector.test(platform.providers, credentials, settings, now_ms=begun_ms)
            )
    except TimeoutError:
        answer = Retry(None, None, NO_ANSWER)
    if outgoing is not None:
        _log.info(
            "connection_tested",
            project_id=project_id,
            connection=name,
            action=action,
            delivery_id=outgoing.delivery_id,
            ok=isinstance(answer, Sent),
        )
    return Trial(
        answer=answer,
        detail=printable(scrubbed(_detail(answer), credentials)),
        took_ms=max(0, platform.clock() - begun_ms),
        delivery_id=None if outgoing is None else outgoing.delivery_id,
    )


def _outgoing(
    connector: Connector,
    action: str,
    message: Mapping[str, Any],
    credentials: dict[str, Any],
    settings: dict[str, Any],
    now_ms: int,
) -> Outgoing:
    if action not in connector.actions:
        raise Invalid(
            f"{connector.kind} cannot {action[:80]!r}; it can: {', '.join(connector.actions)}",
            "/action",
        )
    try:
        checked = connector.check_message(action, dict(message), settings)
        as_key(connector.recipient(action, checked))
    except HostCallRefused as error:
        raise Invalid(str(error), "/message") from error
    return Outgoing(
        action=action,
        message=checked,
        credentials=credentials,
        settings=settings,
        delivery_id=new_id("dlv_test"),
        attempt=1,
        now_ms=now_ms,
    )


async def _count(platform: Providers, key: Key, connector: Connector, outgoing: Outgoing) -> None:
    """Count a message for the cost guard, as if a run had sent it."""
    recipient = as_key(connector.recipient(outgoing.action, outgoing.message))
    whom = None if recipient == EVERYTHING else recipient
    guard = sending_of(connector.habits, outgoing.settings).guard
    over = await platform.journal.run_alone(count_one, key, whom, guard, outgoing.now_ms)
    if over is not None:
        raise Conflict(over)


def _detail(answer: Answer) -> str:
    if not isinstance(answer, Sent):
        return answer.error
    return "the provider took it" if answer.message_id is None else answer.message_id


def _opened(platform: Providers, project_id: str, stored: StoredConnection) -> dict[str, Any]:
    context = connection_context(project_id, stored.name)
    opened: dict[str, Any] = msgspec.json.decode(
        platform.vault.open(stored.sealed, context=context)
    )
    return opened


async def _kept(
    platform: Providers, project_id: str, name: str, kind: str
) -> StoredConnection | None:
    """Return what is stored already, if it is of the same kind."""
    try:
        stored: StoredConnection = await platform.database.read(get_connection, project_id, name)
    except NotFound:
        return None
    return stored if stored.kind == kind else None
