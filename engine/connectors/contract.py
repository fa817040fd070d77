"""What a connector promises: the port between the outbox and one provider.

Path:   outbox -> Connector -> egress -> the provider; vaulted, hostcalls.connections -> checks
Never:  knows the store, retries by itself, or puts a credential into an error.
"""

import asyncio
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from importlib import import_module
from typing import Annotated, Any, Final, Literal, Protocol, TypeAlias, runtime_checkable

import httpx
import msgspec
from msgspec import UNSET, Meta, UnsetType

from engine.allowed_hosts import PORTS_OF_OTHERS
from engine.egress import OF_OTHERS, Egress, EgressFailed, EgressRefused, Response
from engine.errors import HostCallRefused, Invalid, explained

SEND_MS_MAX: Final = 15_000  # providers answer within seconds; a hung one holds a place
ANSWER_BYTES_MAX: Final = 1024 * 1024  # Slack says a message back, each letter in 12 bytes
ERROR_CHARS_MAX: Final = 300
PAYLOAD_BYTES_MAX: Final = 256 * 1024
URL_CHARS_MAX: Final = 2_048
USER_AGENT: Final = "cloudcode-engine"
SEND: Final = "send"  # the action that every connector has, and the first of its `actions`

EVERYTHING: Final = "*"  # as a recipient: all that goes through a connection stands in one line

_MISSING: Final = "Object missing required field "
_OK: Final = range(200, 300)
_BUSY: Final = frozenset(
    {408, 409, 425, 429}
)  # 4xx that mean "not now"; 409: still at the last one


@dataclass(frozen=True, slots=True)
class Sent:
    """The provider took it. `message_id`: its name for it, if it gives one.

    `note`: what to tell people all the same, as who of several was refused.
    """

    status: int | None
    message_id: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """It was not taken, but may be later. `after_ms`: the provider's own wish."""

    after_ms: int | None
    status: int | None
    error: str


@dataclass(frozen=True, slots=True)
class Refused:
    """It will never be taken as it is: the payload, the credentials or the address is wrong.

    `disables`: nor will anything else through this connection, until somebody looks after it.
    """

    status: int | None
    error: str
    disables: bool = False


Answer: TypeAlias = Sent | Retry | Refused


class Rate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """At most `limit` attempts in `period_s` seconds, evenly spread, over all nodes."""

    limit: Annotated[int, Meta(ge=1, le=1_000)]
    period_s: Annotated[float, Meta(gt=0, le=3_600)] = 1


class Guard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many deliveries may begin; more are held until somebody releases them. None: any."""

    recipient_per_hour: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    per_day: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None


class Retries(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a delivery that could not be made is tried again, and when it is given up.

    `waits_s`: before attempt 2, 3, ..., the last one again and again; None: as the kind's habits.
    """

    waits_s: (
        Annotated[
            tuple[Annotated[float, Meta(ge=0.05, le=86_400)], ...],
            Meta(min_length=1, max_length=20),
        ]
        | None
    ) = None
    max_attempts: Annotated[int, Meta(ge=1, le=20)] | None = None
    max_age_s: Annotated[int, Meta(ge=1, le=30 * 86_400)] | None = None


class CommonSettings(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What every kind of connection can be told; what is left out is as the kind's `habits` say."""

    base_url: str | None = None  # instead of the provider's own: a proxy, or a stand-in
    rate: Rate | UnsetType | None = UNSET
    concurrency: Annotated[int, Meta(ge=1, le=8)] | UnsetType = UNSET  # attempts at once, per node
    ordered: bool | UnsetType = UNSET  # one after the other for each recipient
    guard: Guard | UnsetType | None = UNSET
    retries: Retries | UnsetType = UNSET


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """How deliveries of a kind behave unless the connection's settings say otherwise."""

    waits_s: tuple[float, ...] = (1, 5, 20, 60, 300, 900, 3_600)  # before attempt 2, 3, ...
    max_age_s: int = 86_400  # a message that is older is not tried again
    concurrency: int = 4
    ordered: bool = True
    rate: Rate | None = None
    guard: Guard | None = None
    comes_back: bool = False  # anybody's address, this engine's own too: see engine.causality

    @property
    def attempts(self) -> int:
        return len(self.waits_s) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """One attempt."""

    action: str
    message: dict[str, Any] = field(repr=False)
    credentials: dict[str, Any] = field(repr=False)
    settings: dict[str, Any]
    delivery_id: str
    attempt: int  # from 1
    now_ms: int
    callback_url: str | None = None  # where the provider may tell what became of it
    via: str | None = None  # of a kind that `comes_back`: the header that says whose run it was
    timeout_ms: int = SEND_MS_MAX  # for all of the attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class Callback:
    """What a provider posted to say what became of a message. Nothing in it is to be trusted."""

    url: str  # as the provider was told it, with its query: some sign it
    headers: Mapping[str, str]  # names in lower case
    body: bytes = field(repr=False)  # as it came: signatures are over these bytes
    delivery_id: str | None = None  # of the path, if it names one


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a callback says of one delivery. `final` None: on its way, nothing is decided."""

    delivery_id: str
    status: str  # in the provider's own word
    final: Literal["delivered", "failed"] | None = None
    error: str | None = None
    message_id: str | None = None


class CallbackRefused(Exception):
    """A callback that the provider did not sign, or that cannot be read; says why, for the log."""


@runtime_checkable
class TellsLater(Protocol):
    """Port: a Connector whose provider calls back with what became of a message."""

    def callback(
        self, credentials: dict[str, Any], settings: dict[str, Any], callback: Callback
    ) -> list[Told]:
        """Verify the provider's signature, then read what it says.

        Raises:
            CallbackRefused: the signature is missing or wrong, or there is no key to check it.
        """
        ...


class Connector(Protocol):
    """Port: one kind of provider. Adapters hold no state and are safe to call concurrently.

    `credentials` and `settings` of every method below have passed `check_connection`.
    """

    @property
    def kind(self) -> str:
        """The stable name, as in `PUT /v1/connections`."""
        ...

    @property
    def title(self) -> str:
        """What it is, in a line, for lists."""
        ...

    @property
    def actions(self) -> tuple[str, ...]:
        """What it can do, `send` first; each is a method of the binding in `env`."""
        ...

    @property
    def shapes(self) -> tuple[type[msgspec.Struct], type[CommonSettings]]:
        """The structs of its credentials and of its settings."""
        ...

    @property
    def habits(self) -> Habits: ...

    def check(self, credentials: dict[str, Any], settings: dict[str, Any]) -> None:
        """Raise Invalid for what the shapes cannot say; pointers `/credentials/...`."""
        ...

    def check_message(
        self, action: str, message: dict[str, Any], settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return what will be stored and sent, the settings' defaults filled in.

        Raises:
            HostCallRefused: names the wrong or the missing field.
        """
        ...

    def recipient(self, action: str, message: dict[str, Any]) -> str | None:
        """Return whom a checked message is for, for the order and the cost guard.

        None: nobody in particular, so there is no order; EVERYTHING: nobody, and one order for all.
        """
        ...

    async def send(self, client: Egress, outgoing: Outgoing) -> Answer:
        """Make one attempt, within SEND_MS_MAX.

        Returns:
            Always an answer, also when the network or the provider is broken.
        """
        ...

    async def test(
        self, client: Egress, credentials: dict[str, Any], settings: dict[str, Any], *, now_ms: int
    ) -> Answer:
        """Ask the provider whether it knows the credentials; send nobody anything.

        Returns:
            Sent: it does; `message_id` says as whom, for people.
        """
        ...


def check_connection(
    connector: Connector, credentials: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Raise Invalid, with a pointer, unless both are what the connector asks for."""
    credentials_shape, settings_shape = connector.shapes
    _check_shape(credentials, credentials_shape, "/credentials")
    _check_shape(settings, settings_shape, "/settings")
    if settings.get("base_url") is not None:
        check_url(settings["base_url"], "/settings/base_url")
        if re.search(r"[?#]", settings["base_url"]):
            raise Invalid("must end with its path: no query, no fragment", "/settings/base_url")
    connector.check(dict(credentials), dict(settings))


def _check_shape(given: Mapping[str, Any], shape: type[msgspec.Struct], pointer: str) -> None:
    try:
        msgspec.convert(given, type=shape)
    except msgspec.ValidationError as error:
        message, place = explained(error)
        if message.startswith("Object contains unknown field"):
            message = f"{message}; known: {', '.join(shape.__struct_encode_fields__)}"
        if message.startswith(_MISSING):
            place += "/" + message.removeprefix(_MISSING).strip("` ")
        raise Invalid(message, pointer + place) from None  # its text may hold a piece of a secret


async def post_json(
    client: Egress,
    url: str,
    body: bytes,
    headers: list[tuple[str, str]],
    *,
    now_ms: int,
    timeout_ms: int,
) -> Response | Retry | Refused:
    """Post `body`; return a 2xx response, or why it was not taken."""
    headers = [("Content-Type", "application/json"), *headers]
    response = await exchange(client, "POST", url, headers, body, timeout_ms=timeout_ms)
    return response if not isinstance(response, Response) else judged(response, now_ms)


async def exchange(
    client: Egress,
    method: str,
    url: str,
    headers: list[tuple[str, str]],
    body: bytes | None,
    *,
    timeout_ms: int,
) -> Response | Retry | Refused:
    """Make one request; return whatever was answered, or why there is no answer."""
    try:
        return await client.request(
            method,
            httpx.URL(url),
            headers=[("User-Agent", USER_AGENT), *headers],
            body=body,
            timeout_ms=timeout_ms,
            response_bytes_max=ANSWER_BYTES_MAX,
        )
    except EgressRefused as error:
        return Refused(None, str(error))
    except EgressFailed as error:
        return Retry(None, None, str(error))


def judged(response: Response, now_ms: int, text: str | None = None) -> Response | Retry | Refused:
    """Return a 2xx response, or what any provider means by its status: read here, once.

    `text`: what the provider says in its own words, where it is known better than by `said`.
    """
    status = response.status
    if status in _OK:
        return response
    error = said(response) if text is None else f"HTTP {status}: {text}"[:ERROR_CHARS_MAX]
    if status >= 500 or status in _BUSY:  # noqa: PLR2004 - 5xx: theirs
        return Retry(retry_after_ms(response.header("retry-after"), now_ms), status, error)
    if 300 <= status < 400:  # noqa: PLR2004 - 3xx
        return Refused(
            status, f"HTTP {status}: a redirect, which is not followed; set the final URL"
        )
    return Refused(status, error)


def said(response: Response) -> str:
    """Return the status and the first line of the body, for people."""
    lines = response.body.decode("utf-8", "replace").strip().splitlines()
    text = lines[0].strip() if lines else response.reason
    return f"HTTP {response.status}: {text or 'no body'}"[:ERROR_CHARS_MAX]


async def imported(name: str) -> Any:
    """Return a module of a provider's SDK; its first use imports it, off the loop: it is big."""
    module = sys.modules.get(name)
    if module is None or getattr(module.__spec__, "_initializing", True):
        module = await asyncio.to_thread(import_module, name)
    return module


def retry_after_ms(value: str | None, now_ms: int) -> int | None:
    """Return a Retry-After header (seconds or a date) as ms from now. RFC 9110, 10.2.3."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return int(text[:9]) * 1000
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0, int(at.replace(tzinfo=at.tzinfo or UTC).timestamp() * 1000) - now_ms)


def check_url(value: Any, pointer: str) -> None:
    """Raise Invalid unless `value` is an absolute http(s) URL."""
    if not isinstance(value, str) or not value:
        raise Invalid("must be a URL", pointer)
    if len(value) > URL_CHARS_MAX:
        raise Invalid(f"has more than {URL_CHARS_MAX} characters", pointer)
    try:
        url = httpx.URL(value)
    except httpx.InvalidURL as error:
        raise Invalid(f"is not a URL: {error}", pointer) from None  # the text may be a secret
    if url.scheme not in ("http", "https") or not url.host:
        raise Invalid("must be an absolute http or https URL", pointer)
    if url.userinfo:
        raise Invalid("must not carry a user or a password", pointer)
    if url.port in PORTS_OF_OTHERS:
        raise Invalid(f"port {url.port} {OF_OTHERS}; use another one", pointer)


def check_size(message: dict[str, Any], kind: str) -> None:
    """Raise HostCallRefused when `message` is larger than PAYLOAD_BYTES_MAX as JSON."""
    used = len(msgspec.json.encode(message))
    if used > PAYLOAD_BYTES_MAX:
        raise HostCallRefused(
            f"{kind}: the message is {used} bytes; the limit is {PAYLOAD_BYTES_MAX}"
        )
