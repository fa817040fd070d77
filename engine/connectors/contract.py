"""What a connector promises: the port between the outbox and one provider.

Path:   outbox -> Connector -> egress -> the provider
Never:  knows the store, retries by itself, or puts a credential into an error.
"""

from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Final, Protocol, TypeAlias

import httpx
import msgspec

from engine.egress import Egress, EgressFailed, EgressRefused, Response
from engine.errors import HostCallRefused, Invalid

SEND_MS_MAX: Final = 15_000  # providers answer within seconds; a hung one holds a place
ANSWER_BYTES_MAX: Final = 16 * 1024  # only the first line of it is kept
ERROR_CHARS_MAX: Final = 300
PAYLOAD_BYTES_MAX: Final = 256 * 1024
URL_CHARS_MAX: Final = 2_048
USER_AGENT: Final = "cloudcode-engine"

_OK: Final = range(200, 300)
_BUSY: Final = frozenset(
    {408, 409, 425, 429}
)  # 4xx that mean "not now"; 409: still at the last one


@dataclass(frozen=True, slots=True)
class Sent:
    """The provider took it."""

    status: int


@dataclass(frozen=True, slots=True)
class Retry:
    """It was not taken, but may be later. `after_ms`: the provider's own wish."""

    after_ms: int | None
    status: int | None
    error: str


@dataclass(frozen=True, slots=True)
class Refused:
    """It will never be taken as it is: the payload, the credentials or the address is wrong."""

    status: int | None
    error: str


Answer: TypeAlias = Sent | Retry | Refused


class Connector(Protocol):
    """Port: one kind of provider. Adapters hold no state and are safe to call concurrently."""

    @property
    def kind(self) -> str:
        """The stable name, as in `PUT /v1/connections`."""
        ...

    def check_credentials(self, credentials: dict[str, Any]) -> None:
        """Raise Invalid, with a pointer below `/credentials`, unless they are complete."""
        ...

    def check_settings(self, settings: dict[str, Any]) -> None:
        """Raise Invalid, with a pointer below `/settings`, unless they are well-formed."""
        ...

    def check_payload(self, payload: dict[str, Any]) -> dict[str, Any]:
        """Return what will be stored and sent; raise HostCallRefused that names the wrong field."""
        ...

    async def send(
        self,
        client: Egress,
        credentials: dict[str, Any],
        settings: dict[str, Any],
        payload: dict[str, Any],
        delivery_id: str,
        attempt: int,
        *,
        now_ms: int,
    ) -> Answer:
        """Make one attempt, within SEND_MS_MAX.

        Returns:
            Always an answer, also when the network or the provider is broken.
        """
        ...


async def post_json(
    client: Egress, url: str, body: bytes, headers: list[tuple[str, str]], *, now_ms: int
) -> Response | Retry | Refused:
    """Post `body`; return a 2xx response, or why it was not taken. Statuses are read here, once."""
    try:
        response = await client.request(
            "POST",
            httpx.URL(url),
            headers=[("Content-Type", "application/json"), ("User-Agent", USER_AGENT), *headers],
            body=body,
            timeout_ms=SEND_MS_MAX,
            response_bytes_max=ANSWER_BYTES_MAX,
        )
    except EgressRefused as error:
        return Refused(None, str(error))
    except EgressFailed as error:
        return Retry(None, None, str(error))
    status = response.status
    if status in _OK:
        return response
    if status >= 500 or status in _BUSY:  # noqa: PLR2004 - 5xx: theirs
        after_ms = retry_after_ms(response.header("retry-after"), now_ms)
        return Retry(after_ms, status, said(response))
    if 300 <= status < 400:  # noqa: PLR2004 - 3xx
        return Refused(
            status, f"HTTP {status}: a redirect, which is not followed; set the final URL"
        )
    return Refused(status, said(response))


def said(response: Response) -> str:
    """Return the status and the first line of the body, for people."""
    lines = response.body.decode("utf-8", "replace").strip().splitlines()
    text = lines[0].strip() if lines else response.reason
    return f"HTTP {response.status}: {text or 'no body'}"[:ERROR_CHARS_MAX]


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


def check_known(given: dict[str, Any], known: frozenset[str], what: str) -> None:
    """Raise Invalid for the first field of `given` that is not in `known`."""
    for name in given:
        if name not in known:
            names = ", ".join(sorted(known))
            raise Invalid(f"unknown field {name!r}; known: {names}", f"/{what}/{name}")


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


def check_size(payload: dict[str, Any], kind: str) -> None:
    """Raise HostCallRefused when `payload` is larger than PAYLOAD_BYTES_MAX as JSON."""
    used = len(msgspec.json.encode(payload))
    if used > PAYLOAD_BYTES_MAX:
        raise HostCallRefused(
            f"{kind}: the payload is {used} bytes; the limit is {PAYLOAD_BYTES_MAX}"
        )
