"""Any receiver of signed webhooks.

Source: Standard Webhooks 1.0 (standardwebhooks.com): headers, signatures, secrets, rotation, the
        schedule of attempts, and which status means what ("Operational considerations").
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

import httpx
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta

from engine.causality import CDN_LOOP, HEADER
from engine.connectors.contract import (
    EVERYTHING,
    Answer,
    CommonSettings,
    Habits,
    Outgoing,
    Refused,
    Retry,
    Sent,
    check_size,
    check_url,
    exchange,
    judged,
    retry_after_ms,
)
from engine.egress import Egress, Response
from engine.errors import Invalid

SECRET_BYTES: Final = range(24, 65)
SIGNING_KEY_BYTES: Final = (32, 64)  # an ed25519 seed, or the seed and its public key behind it
SECRETS_MAX: Final = 4  # while old ones run out
HEADERS_MAX: Final = 16
HEADER_CHARS_MAX: Final = 1_024
TEST_TYPE: Final = "cloudcode.test"
TEST_MS_MAX: Final = 10_000
CLIENT_ERRORS: Final = range(400, 500)

_HMAC_PREFIX: Final = "whsec_"
_ED25519_PREFIX: Final = "whsk_"
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")  # RFC 9110, 5.6.2
_HEADER_VALUE: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_OUR_HEADERS: Final = frozenset(
    {"host", "content-length", "content-type", "content-encoding", "user-agent", "expect",
     # Those that a proxy takes off. RFC 9110, 7.6.1.
     "connection", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization",
     "te", "trailer", "transfer-encoding", "upgrade",
     HEADER.lower(), CDN_LOOP[0].lower()}
)  # fmt: skip
_CREDENTIAL_HEADERS: Final = frozenset({"authorization", "cookie"})


class Credentials(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    url: str
    secret: str | None = None
    secrets: list[str] | None = None  # newest first; every one signs
    signing_key: str | None = None  # ed25519: the receiver needs only the public key


class Settings(CommonSettings, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    method: Literal["POST", "PUT"] = "POST"
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    envelope: bool = False  # {type, timestamp, data: the message} instead of the message alone
    type: (
        Annotated[str, Meta(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$", max_length=100)] | None
    ) = None


class Webhook:
    """Credentials `{url, secret? | secrets?, signing_key?}`; every key that is given signs."""

    kind = "webhook"
    title = "Any receiver of signed webhooks"
    actions = ("send",)
    shapes = (Credentials, Settings)
    habits = Habits(
        waits_s=(5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400),
        max_age_s=5 * 86_400,
        ordered=False,
        comes_back=True,
    )

    def check(self, credentials: dict[str, Any], settings: dict[str, Any]) -> None:
        check_url(credentials["url"], "/credentials/url")
        _keys(credentials)
        for name, value in settings.get("headers", {}).items():
            _check_header(name, value)
        if len(settings.get("headers", {})) > HEADERS_MAX:
            raise Invalid(f"has more than {HEADERS_MAX} entries", "/settings/headers")
        if settings.get("envelope", False) != bool(settings.get("type")):
            raise Invalid("an envelope has a type: give both or none", "/settings/type")

    def check_message(
        self, action: str, message: dict[str, Any], settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        check_size(message, self.kind)
        return message

    def recipient(self, action: str, message: dict[str, Any]) -> str | None:
        """Return the same for every message: with `settings.ordered` all of them are in order."""
        return EVERYTHING

    async def send(self, client: Egress, outgoing: Outgoing) -> Answer:
        settings = outgoing.settings
        message: Any = outgoing.message
        if settings.get("envelope"):
            message = _enveloped(settings["type"], _time_of(outgoing.delivery_id), message)
        return await _posted(
            client,
            outgoing.credentials,
            settings,
            webhook_id=outgoing.delivery_id,
            body=msgspec.json.encode(message),
            now_ms=outgoing.now_ms,
            timeout_ms=outgoing.timeout_ms,
            via=outgoing.via,
        )

    async def test(
        self, client: Egress, credentials: dict[str, Any], settings: dict[str, Any], *, now_ms: int
    ) -> Answer:
        """Send a signed `cloudcode.test`: a receiver has no other way to say that it is there."""
        answer = await _posted(
            client,
            credentials,
            settings,
            webhook_id=f"test_{now_ms}",
            body=msgspec.json.encode(_enveloped(TEST_TYPE, now_ms, {})),
            now_ms=now_ms,
            timeout_ms=TEST_MS_MAX,
        )
        if not isinstance(answer, Sent):
            return answer
        return Sent(answer.status, f"{httpx.URL(credentials['url']).host} took a signed test")


async def _posted(
    client: Egress,
    credentials: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    webhook_id: str,
    body: bytes,
    now_ms: int,
    timeout_ms: int,
    via: str | None = None,
) -> Answer:
    timestamp = str(now_ms // 1000)
    signatures = [sign(key, webhook_id, timestamp, body) for key in _keys(credentials)]
    headers = [
        ("Content-Type", "application/json"),
        ("webhook-id", webhook_id),
        ("webhook-timestamp", timestamp),
        *([("webhook-signature", " ".join(signatures))] if signatures else []),
        *([(HEADER, via), CDN_LOOP] if via is not None else []),
        *settings.get("headers", {}).items(),
    ]
    answer = await exchange(
        client,
        settings.get("method", "POST"),
        _address(credentials["url"], settings.get("base_url")),
        headers,
        body,
        timeout_ms=timeout_ms,
    )
    if not isinstance(answer, Response):
        return answer
    verdict = judged(answer, now_ms)
    if isinstance(verdict, Response):
        return Sent(verdict.status)
    if verdict.status == httpx.codes.GONE:
        return Refused(
            verdict.status, f"{verdict.error}; the receiver wants nothing more", disables=True
        )
    if verdict.status == httpx.codes.LOOP_DETECTED:
        return Refused(verdict.status, verdict.error)  # by this engine, and it stays one
    if isinstance(verdict, Refused) and answer.status in CLIENT_ERRORS:
        # The standard: all but 2xx is tried again. Receivers say 4xx while they are deployed.
        return Retry(
            retry_after_ms(answer.header("retry-after"), now_ms), answer.status, verdict.error
        )
    return verdict


def sign(key: bytes | Ed25519PrivateKey, webhook_id: str, timestamp: str, body: bytes) -> str:
    """Return `v1,` (HMAC-SHA256) or `v1a,` (ed25519) and the base64 of `id.timestamp.body`."""
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    if isinstance(key, bytes):
        return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode("ascii")
    return "v1a," + base64.b64encode(key.sign(signed)).decode("ascii")


def _enveloped(event_type: str, at_ms: int, data: dict[str, Any]) -> dict[str, Any]:
    at = datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")
    return {"type": event_type, "timestamp": at.replace("+00:00", "Z"), "data": data}


def _time_of(delivery_id: str) -> int:
    """Return when the cause of a delivery happened, in ms: its id begins with it (UUIDv7).

    Not the time of the attempt: the body has to be the same each time.
    """
    return int(delivery_id[-32:-20], 16)


def _address(url: str, base_url: str | None) -> str:
    if base_url is None:
        return url
    return base_url.rstrip("/") + httpx.URL(url).raw_path.decode("ascii")


def _check_header(name: str, value: str) -> None:
    pointer = f"/settings/headers/{name}"
    if not _HEADER_NAME.fullmatch(name):
        raise Invalid("is not the name of a header", pointer)
    if name.lower() in _OUR_HEADERS or name.lower().startswith("webhook-"):
        raise Invalid("is made by the engine, or belongs to the connection", pointer)
    if name.lower() in _CREDENTIAL_HEADERS:
        raise Invalid(
            "settings can be read by anybody with a key; sign with a secret instead", pointer
        )
    if len(value) > HEADER_CHARS_MAX or not _HEADER_VALUE.fullmatch(value):
        raise Invalid(
            f"must be 1 to {HEADER_CHARS_MAX} printable ASCII characters, no space at its ends",
            pointer,
        )


def _keys(credentials: Mapping[str, Any]) -> list[bytes | Ed25519PrivateKey]:
    """Return what signs, in the order of the signatures; credentials may give none.

    Raises:
        Invalid: says what is wrong, and never shows a piece of a key.
    """
    one, several = credentials.get("secret"), credentials.get("secrets")
    signing_key = credentials.get("signing_key")
    if one is not None and several is not None:
        raise Invalid("give secret or secrets, not both", "/credentials/secrets")
    keys: list[bytes | Ed25519PrivateKey] = []
    if one is not None:
        keys.append(_secret(one, "/credentials/secret"))
    if several is not None:
        if not 0 < len(several) <= SECRETS_MAX:
            raise Invalid(f"must be a list of 1 to {SECRETS_MAX}", "/credentials/secrets")
        keys += [_secret(text, f"/credentials/secrets/{at}") for at, text in enumerate(several)]
    if signing_key is not None:
        seed = _decoded(signing_key, _ED25519_PREFIX, SIGNING_KEY_BYTES, "/credentials/signing_key")
        keys.append(Ed25519PrivateKey.from_private_bytes(seed[:32]))
    return keys


def _secret(text: str, pointer: str) -> bytes:
    return _decoded(text, _HMAC_PREFIX, SECRET_BYTES, pointer)


def _decoded(text: str, prefix: str, sizes: range | tuple[int, ...], pointer: str) -> bytes:
    join = " to " if isinstance(sizes, range) else " or "
    what = f"must be {prefix} and base64 of {sizes[0]}{join}{sizes[-1]} random bytes"
    if not text.startswith(prefix):
        raise Invalid(what, pointer)
    try:
        key = base64.b64decode(text.removeprefix(prefix), validate=True)
    except (binascii.Error, ValueError):
        raise Invalid(what, pointer) from None  # the error's text may hold a piece of the secret
    if len(key) not in sizes:
        raise Invalid(f"{what}; it has {len(key)}", pointer)
    return key
