"""Any receiver of signed webhooks.

Source: Standard Webhooks 1.0 (standardwebhooks.com): headers, signature, secrets, rotation.
"""

import base64
import binascii
import hashlib
import hmac
from typing import Any, Final

import msgspec

from engine.connectors.contract import Answer, Sent, check_known, check_size, check_url, post_json
from engine.egress import Egress, Response
from engine.errors import Invalid

SECRET_BYTES: Final = range(24, 65)
SECRETS_MAX: Final = 4  # while old ones run out
_PREFIX: Final = "whsec_"


class Webhook:
    """Credentials `{url, secret? | secrets?}`; with several secrets every one signs."""

    kind = "webhook"

    def check_credentials(self, credentials: dict[str, Any]) -> None:
        check_known(credentials, frozenset({"url", "secret", "secrets"}), "credentials")
        check_url(credentials.get("url"), "/credentials/url")
        if "secret" in credentials and "secrets" in credentials:
            raise Invalid("give secret or secrets, not both", "/credentials/secrets")
        if "secret" in credentials:
            _key(credentials["secret"], "/credentials/secret")
        if "secrets" in credentials:
            secrets = credentials["secrets"]
            if not isinstance(secrets, list) or not 0 < len(secrets) <= SECRETS_MAX:
                raise Invalid(f"must be a list of 1 to {SECRETS_MAX}", "/credentials/secrets")
            for at, secret in enumerate(secrets):
                _key(secret, f"/credentials/secrets/{at}")

    def check_settings(self, settings: dict[str, Any]) -> None:
        check_known(settings, frozenset(), "settings")

    def check_payload(self, payload: dict[str, Any]) -> dict[str, Any]:
        check_size(payload, self.kind)
        return payload

    async def send(
        self,
        client: Egress,
        credentials: dict[str, Any],
        settings: dict[str, Any],
        payload: dict[str, Any],
        delivery_id: str,
        attempt: int,  # the id stays the same over retries, so receivers can dedupe
        *,
        now_ms: int,
    ) -> Answer:
        body = msgspec.json.encode(payload)
        timestamp = str(now_ms // 1000)
        headers = [("webhook-id", delivery_id), ("webhook-timestamp", timestamp)]
        secrets = credentials.get("secrets") or [credentials.get("secret")]
        signatures = [
            sign(_key(secret, ""), delivery_id, timestamp, body) for secret in secrets if secret
        ]
        if signatures:
            headers.append(("webhook-signature", " ".join(signatures)))
        answer = await post_json(client, credentials["url"], body, headers, now_ms=now_ms)
        return Sent(answer.status) if isinstance(answer, Response) else answer


def sign(key: bytes, webhook_id: str, timestamp: str, body: bytes) -> str:
    """Return `v1,<base64 HMAC-SHA256>` of `id.timestamp.body`."""
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode("ascii")


def _key(secret: Any, pointer: str) -> bytes:
    what = f"must be {_PREFIX} and base64 of {SECRET_BYTES[0]} to {SECRET_BYTES[-1]} random bytes"
    if not isinstance(secret, str) or not secret.startswith(_PREFIX):
        raise Invalid(what, pointer)
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise Invalid(what, pointer) from None  # the error's text may hold a piece of the secret
    if len(key) not in SECRET_BYTES:
        raise Invalid(f"{what}; it has {len(key)}", pointer)
    return key
