"""The host call `connection.send`: one delivery per call, buffered until the run succeeds.

Path:   broker -> here -> Run.effects; commit -> store.deliveries, and the outbox
Never:  sends anything now; puts a credential where it could be read again.
"""

import re
from collections.abc import Callable
from hashlib import sha256
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from engine.catalogue import BoundConnection
from engine.connectors import CONNECTORS
from engine.connectors.contract import EVERYTHING, SEND, Connector, check_connection
from engine.connectors.mailboxes import TOGETHER_CHARS_MAX
from engine.deliveries import sending_of
from engine.errors import HostCallRefused, Invalid
from engine.intents import delivery_id
from engine.quotas import CREDENTIALS_BYTES_MAX
from engine.run import DeliveryEffect, Run
from engine.runner import LimitReached, spend_bytes
from engine.scrub import scrubbed
from engine.vault import Vault, delivery_context
from runtimes.contract import LimitHit, Outcome

Line = tuple[str, int, str]
"""(level, ms, text) of a run's log."""

EMAIL: Final = "email"  # instead of a kind: any that takes {from, to, subject, text | html}
EMAIL_KINDS: Final = ("sendgrid", "mail", "mailchimp")
# Of several that fit, the one that is meant when the script names none.
_USUAL_NAMES: Final = {EMAIL: ("EMAIL", "MAIL"), "twilio": ("TWILIO", "SMS")}
# Credentials of these say where a message goes, and a script may reach its allowed hosts only.
_LEAD_ANYWHERE: Final = frozenset({"webhook", "apprise"})
RECIPIENT_CHARS_MAX: Final = TOGETHER_CHARS_MAX  # PostgreSQL's keys end at 2.7 kB
_HEAD_CHARS: Final = 80
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SLACK_HOSTS: Final = frozenset({"hooks.slack.com", "hooks.slack-gov.com"})


class _Send(msgspec.Struct):
    """Through `connection`; or, without one, by `kind`, with the script's own credentials or not.

    `kind` may be EMAIL where it is not about credentials.
    """

    message: dict[str, Any]
    connection: str | None = None
    kind: str | None = None
    credentials: dict[str, Any] | None = None
    action: str = SEND


class Connections:
    """What a run may ask to be sent."""

    def __init__(self, vault: Vault, tell: Callable[[Run, list[Line]], None]) -> None:
        self._vault = vault
        self._tell = tell  # those who follow the log

    def send(self, run: Run, arguments: bytes, _call: int) -> str:
        """Check the message against its connector and buffer it; the answer is the delivery's id.

        Raises:
            HostCallRefused: names the field, or what there is to choose from.
            LimitReached: one message more than a run may send.
        """
        asked = msgspec.json.decode(arguments, type=_Send)
        sealable = None
        if asked.credentials is None:
            name, bound = _stored(run, asked)
        else:
            sealable = _checked(asked)
            assert asked.kind is not None
            name = _inline_name(run.project_id, asked.kind, sealable)
            bound = BoundConnection(kind=asked.kind, settings={})
        connector = _connector(bound.kind)
        action = asked.action
        if action not in connector.actions:
            can = ", ".join(connector.actions)
            raise HostCallRefused(f"{bound.kind} cannot {action[:80]!r}; it can: {can}")
        message = connector.check_message(action, asked.message, bound.settings)
        spend_bytes(run, len(arguments))
        count = 1 + sum(isinstance(effect, DeliveryEffect) for effect in run.effects)
        most = run.limits.deliveries
        if count > most:
            hit = LimitHit(name="deliveries", value=most, used=count)
            raise LimitReached(Outcome.EFFECTS_EXCEEDED, hit)
        recipient = as_key(connector.recipient(action, message))
        ordered = sending_of(connector.habits, bound.settings).ordered
        made = delivery_id(run, name, action, message)
        sealed = None
        if sealable is not None:
            self._warn(run, bound.kind)
            sealed = self._vault.seal(sealable, context=delivery_context(run.project_id, made))
        effect = DeliveryEffect(
            id=made,
            connection=name,
            kind=bound.kind,
            action=action,
            recipient=None if recipient == EVERYTHING else recipient,
            line=recipient if ordered else None,
            payload=msgspec.json.encode(message).decode(),
            sealed=sealed,
            via=run.via() if connector.habits.comes_back else None,
        )
        run.effects.append(effect)
        return made

    def _warn(self, run: Run, kind: str) -> None:
        """Say it in the run's log, the first time."""
        known = (effect for effect in run.effects if isinstance(effect, DeliveryEffect))
        if any(effect.sealed is not None for effect in known):
            return
        name = _usual(EMAIL if kind in EMAIL_KINDS else kind)[0]  # as the upload's warning says
        text = (
            f"the credentials for {kind} come from the code; store them instead: "
            f"PUT /v1/connections/{name}, and leave them out here"
        )
        line = ("warn", run.guest_ms, text)
        run.log.append(line)
        self._tell(run, [line])


def as_key(recipient: str | None) -> str | None:
    """Return whom a message is for, as what an index can have: printable, and short.

    Raises:
        HostCallRefused: there are control characters in it.
    """
    if recipient is None:
        return None
    if _CONTROL.search(recipient):
        raise HostCallRefused(f"the recipient {recipient[:80]!r} has a control character")
    if len(recipient) <= RECIPIENT_CHARS_MAX:
        return recipient
    digest = sha256(recipient.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{recipient[:_HEAD_CHARS]}... {digest}"


def _stored(run: Run, asked: _Send) -> tuple[str, BoundConnection]:
    """Return the connection that is named, or the one that must be meant."""
    connections, kind = run.version.connections, asked.kind
    kinds = EMAIL_KINDS if kind == EMAIL else (kind or "",)
    if asked.connection is not None:
        bound = connections.get(asked.connection)
        if bound is None:
            raise HostCallRefused(
                f"there is no connection {asked.connection[:80]!r} that this function may use"
            )
        if kind is not None and bound.kind not in kinds:
            raise HostCallRefused(f"{asked.connection} is {bound.kind}, not {_or(kinds)}"[:200])
        return asked.connection, bound
    if kind is None:
        raise HostCallRefused("give connection, or kind")
    if kind != EMAIL:
        _connector(kind)
    names = sorted(name for name, bound in connections.items() if bound.kind in kinds)
    usual = _usual(kind)
    meant = names if len(names) == 1 else [name for name in usual if name in names]
    if meant:
        return meant[0], connections[meant[0]]
    if not names:
        raise HostCallRefused(
            f"no credentials were given, and there is no connection of kind {_or(kinds)} that this "
            f"function may use; store one: PUT /v1/connections/{usual[0]}{_or_let_use(run, kinds)}"
        )
    raise HostCallRefused(
        f"there are several connections of kind {_or(kinds)}: {', '.join(names)}; name one, or "
        f"call one {usual[0]}"
    )


def _or_let_use(run: Run, kinds: tuple[str, ...]) -> str:
    """Return the remedy where there is one of the kind, and only this function may not use it."""
    for name, kind in sorted(run.version.withheld.items()):
        if kind in kinds:
            return (
                f"; or let this function use {name}: cloudcode connections put {name} --kind "
                f"{kind} --keep-credentials --function {run.version.function} (and one "
                "--function for each other that may)"
            )
    return ""


def _checked(asked: _Send) -> bytes:
    """Return the script's own credentials as JSON, once they are known to be some.

    Raises:
        HostCallRefused: never says what they are.
    """
    kind, credentials = asked.kind, asked.credentials
    assert credentials is not None
    if kind is None or asked.connection is not None:
        raise HostCallRefused("credentials need a kind, and no connection")
    connector = _connector(kind)
    _check_reach(kind, credentials)
    try:
        check_connection(connector, credentials, {})
    except Invalid as error:
        (problem,) = error.problems
        field = problem.pointer.strip("/").replace("/", ".") or "credentials"
        told = scrubbed(f"{field}: {problem.message}", credentials)
        if field.startswith("settings."):
            told += "; only a stored connection has settings: PUT /v1/connections/NAME"
        raise HostCallRefused(told) from None  # its text may hold a piece of a secret
    plain = msgspec.json.encode(credentials, order="sorted")
    if len(plain) > CREDENTIALS_BYTES_MAX:
        raise HostCallRefused(
            f"credentials: {len(plain)} bytes as JSON; at most {CREDENTIALS_BYTES_MAX} are allowed"
        )
    return plain


def _check_reach(kind: str, credentials: dict[str, Any]) -> None:
    """Refuse what would take a message past the hosts that the function was allowed."""
    why = "would say where messages go; store a connection, or use fetch and allowed_hosts"
    if kind in _LEAD_ANYWHERE:
        raise HostCallRefused(f"credentials of {kind} in the code {why}")
    url = credentials.get("webhook_url") if kind == "slack" else None
    if url is not None and _host_of(url) not in _SLACK_HOSTS:
        raise HostCallRefused(f"credentials.webhook_url in the code must be Slack's own; it {why}")


def _host_of(url: Any) -> str | None:
    try:
        return urlsplit(url).hostname if isinstance(url, str) else None
    except ValueError:
        return None


def _connector(kind: str) -> Connector:
    connector = CONNECTORS.get(kind)
    if connector is None:
        raise HostCallRefused(f"this release has no connector for {kind[:80]}")
    return connector


def _usual(kind: str) -> tuple[str, ...]:
    return _USUAL_NAMES.get(kind, (kind.upper(),))


def _or(kinds: tuple[str, ...]) -> str:
    return " or ".join(kinds)


def _inline_name(project_id: str, kind: str, credentials: bytes) -> str:
    """Return a name that keeps deliveries of the same credentials together, and tells no others.

    Not X: an HMAC under the master key, for a replay after a change of that key would get another
    delivery's id, and be sent twice.
    """
    told = b"\0".join((project_id.encode(), kind.encode(), credentials))
    return f"inline:{kind}:{sha256(told).hexdigest()[:8]}"
