"""Slack, by an incoming webhook.

Source: docs.slack.dev, "Sending messages using incoming webhooks" and its table of errors;
        limits of a message: "Truncating content" and the reference of blocks and attachments.
"""

from typing import Any, Final

import httpx
import msgspec

from engine.connectors.contract import (
    Answer,
    Refused,
    Sent,
    check_known,
    check_size,
    check_url,
    post_json,
    said,
)
from engine.egress import Egress, Response
from engine.errors import HostCallRefused

TEXT_CHARS_MAX: Final = 40_000
BLOCKS_MAX: Final = 50
ATTACHMENTS_MAX: Final = 100

_STRINGS: Final = ("text", "username", "icon_emoji", "icon_url", "channel", "thread_ts")
_LISTS: Final = {"blocks": BLOCKS_MAX, "attachments": ATTACHMENTS_MAX}


class Slack:
    """Credentials `{webhook_url}`; settings `{base_url?}`: another server (a test's)."""

    kind = "slack"

    def check_credentials(self, credentials: dict[str, Any]) -> None:
        check_known(credentials, frozenset({"webhook_url"}), "credentials")
        check_url(credentials.get("webhook_url"), "/credentials/webhook_url")

    def check_settings(self, settings: dict[str, Any]) -> None:
        check_known(settings, frozenset({"base_url"}), "settings")
        if "base_url" in settings:
            check_url(settings["base_url"], "/settings/base_url")

    def check_payload(self, payload: dict[str, Any]) -> dict[str, Any]:
        """Check the fields that Slack refuses; pass on those it may have added since."""
        for name in _STRINGS:
            if not isinstance(payload.get(name, ""), str):
                raise HostCallRefused(f"slack: {name} must be a string")
        for name, most in _LISTS.items():
            items = payload.get(name, [])
            if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
                raise HostCallRefused(f"slack: {name} must be a list of objects")
            if len(items) > most:
                raise HostCallRefused(f"slack: {name} has {len(items)} items; Slack takes {most}")
        if not any(payload.get(name) for name in ("text", *_LISTS)):
            raise HostCallRefused("slack: text or blocks is required")
        if len(payload.get("text", "")) > TEXT_CHARS_MAX:
            raise HostCallRefused(f"slack: text has more than {TEXT_CHARS_MAX} characters")
        check_size(payload, self.kind)
        return payload

    async def send(
        self,
        client: Egress,
        credentials: dict[str, Any],
        settings: dict[str, Any],
        payload: dict[str, Any],
        delivery_id: str,  # Slack has no place for it
        attempt: int,
        *,
        now_ms: int,
    ) -> Answer:
        url = _address(credentials["webhook_url"], settings.get("base_url"))
        answer = await post_json(client, url, msgspec.json.encode(payload), [], now_ms=now_ms)
        if not isinstance(answer, Response):
            return answer
        if answer.status == httpx.codes.OK and answer.body.strip() in (b"ok", b'{"ok":true}'):
            return Sent(answer.status)
        # Not Retry: a 2xx means that somebody took it; again could post it twice.
        return Refused(answer.status, f"expected the answer 'ok', got {said(answer)}")


def _address(webhook_url: str, base_url: str | None) -> str:
    if base_url is None:
        return webhook_url
    return base_url.rstrip("/") + httpx.URL(webhook_url).raw_path.decode("ascii")
