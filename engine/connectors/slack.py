"""Slack, through the maintained SDK, `slack_sdk`: an incoming webhook, or a token's postMessage.

Path:   outbox -> here -> slack_sdk -> _Session -> egress -> hooks.slack.com or slack.com/api
Never:  lets the SDK open a connection or try again; takes a message as sent unless Slack says so.

Source: docs.slack.dev: chat.postMessage, "Sending messages using incoming webhooks", "Rate limits",
        Block Kit's reference of blocks; "Truncating really long messages".
"""

import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import httpx
import msgspec

from engine.connectors.contract import (
    ERROR_CHARS_MAX,
    SEND,
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
    imported,
    judged,
    retry_after_ms,
    said,
)
from engine.connectors.meanings import Meaning, disables, refused, retry
from engine.egress import Egress, Response
from engine.errors import HostCallRefused, Invalid

API: Final = "https://slack.com"
TEXT_CHARS_MAX: Final = 40_000
BLOCKS_MAX: Final = 50
ATTACHMENTS_MAX: Final = 100
TEST_MS_MAX: Final = 10_000

_TOKEN: Final = re.compile(r"(xoxe\.)?xox[a-z]-[A-Za-z0-9-]{8,400}")
_MESSAGE_ID: Final = re.compile(r"(?:([A-Z0-9]{2,30})/)?([0-9]{1,20}\.[0-9]{1,10})")
_STRINGS: Final = (
    "text", "channel", "thread_ts", "username", "icon_emoji", "icon_url", "markdown_text", "parse",
)  # fmt: skip
_FLAGS: Final = ("reply_broadcast", "unfurl_links", "unfurl_media", "mrkdwn", "link_names")
_LISTS: Final = {"blocks": BLOCKS_MAX, "attachments": ATTACHMENTS_MAX}
_JSON: Final = (*_LISTS, "metadata")  # may be its text, as Slack's form has it
_SOMETHING: Final = ("text", "markdown_text", *_LISTS)

# Block Kit: the most characters of a block's text by its type, and the most items of a list.
_BLOCK_TEXT_MAX: Final = {"section": 3_000, "header": 150, "markdown": 12_000}
_BLOCK_ITEMS_MAX: Final = {"fields": 10, "elements": 25}
BLOCK_ID_CHARS_MAX: Final = 255

# The SDK logs URLs, which may be secrets; a logger of the tree could be switched on.
_SILENT: Final = logging.Logger("-", logging.CRITICAL + 1)  # noqa: LOG001 - outside of the tree

_PUT: Final = "PUT the connection with a valid token"
_HOOK: Final = "PUT the connection with a valid webhook_url"
_JOIN: Final = "invite the app: /invite @app in the channel, then recover"
_CHANNEL: Final = "channel must be the id of one that the app can see"
_ADMIN: Final = "an admin's setting of the workspace prevents it"
_BLOCKS: Final = "check the blocks in Slack's Block Kit Builder"
_OURS: Final = "Slack does not understand the request: look at its fields"
_MOVING: Final = "the workspace moves to an Enterprise organization"

# "error" of an answer {"ok": false}; what is not here is refused: it may have been posted.
ERRORS: Final[Mapping[str, Meaning]] = {
    "ratelimited": retry("set a lower rate for the connection"),
    "rate_limited": retry("set a lower rate for the connection"),
    "internal_error": retry("Slack's own error"),
    "fatal_error": retry("Slack's own error"),
    "service_unavailable": retry("Slack is not available"),
    "request_timeout": retry("Slack has not got all of the request"),
    "team_added_to_org": retry(_MOVING, 300),
    "org_login_required": retry(_MOVING, 300),
    "not_authed": disables(_PUT),
    "invalid_auth": disables(_PUT),
    "account_inactive": disables(_PUT),
    "token_revoked": disables(_PUT),
    "token_expired": disables(_PUT),
    "not_allowed_token_type": disables("a bot's token, xoxb-..., is needed: " + _PUT),
    "two_factor_setup_required": disables("the token's user must set up a second factor"),
    "enterprise_is_restricted": disables(_ADMIN),
    "missing_scope": refused("add the scope to the app and install it again, then recover"),
    "no_permission": refused(_JOIN),
    "channel_not_found": refused(_CHANNEL),
    "not_in_channel": refused(_JOIN),
    "is_archived": refused("the channel is archived"),
    "messages_tab_disabled": refused("allow messages in the app's settings: App Home"),
    "restricted_action": refused(_ADMIN),
    "restricted_action_read_only_channel": refused("nobody may post to this channel"),
    "restricted_action_thread_only_channel": refused("only replies go there: thread_ts"),
    "restricted_action_non_threadable_channel": refused("no replies go there: no thread_ts"),
    "restricted_action_thread_locked": refused("the thread is locked"),
    "cannot_reply_to_message": refused("thread_ts must be of a message that can have replies"),
    "ekm_access_denied": refused(_ADMIN),
    "access_denied": refused(_ADMIN),
    "accesslimited": refused("this network may not call Slack: " + _ADMIN),
    "team_access_not_granted": refused("install the app in this workspace, then recover"),
    "slack_connect_file_link_sharing_blocked": refused(_ADMIN),
    "no_text": refused("give text or blocks"),
    "msg_too_long": refused(f"text has at most {TEXT_CHARS_MAX} characters"),
    "msg_blocks_too_long": refused("the blocks are too long"),
    "too_many_attachments": refused(f"at most {ATTACHMENTS_MAX} attachments"),
    "too_many_contact_cards": refused("at most 10 contact cards"),
    "invalid_blocks": refused(_BLOCKS),
    "invalid_blocks_format": refused(_BLOCKS),
    "metadata_too_large": refused("metadata is too large"),
    "invalid_metadata_format": refused("metadata must have event_type and event_payload"),
    "invalid_metadata_schema": refused("metadata does not fit the schema of its event_type"),
    "metadata_must_be_sent_from_app": refused("metadata needs an app's token"),
    "as_user_not_supported": refused("leave out as_user"),
    "invalid_arguments": refused(_OURS),
    "invalid_arg_name": refused(_OURS),
    "invalid_array_arg": refused(_OURS),
    "invalid_charset": refused(_OURS),
    "invalid_form_data": refused(_OURS),
    "invalid_post_type": refused(_OURS),
    "missing_post_type": refused(_OURS),
    "invalid_json": refused(_OURS),
    "json_not_object": refused(_OURS),
    "method_deprecated": refused("this release of the engine is too old for Slack"),
    "deprecated_endpoint": refused("this release of the engine is too old for Slack"),
}

# The text of an incoming webhook's answer; what is not here is judged by its HTTP status.
WEBHOOK_ERRORS: Final[Mapping[str, Meaning]] = {
    "rate_limited": retry("set a lower rate for the connection"),
    "ratelimited": retry("set a lower rate for the connection"),
    "rollup_error": retry("Slack's own error"),
    "no_service": disables("the webhook was removed: " + _HOOK),
    "no_service_id": disables("the webhook was removed: " + _HOOK),
    "no_active_hooks": disables("the webhook was switched off: " + _HOOK),
    "no_team": disables("the workspace is gone: " + _HOOK),
    "team_disabled": disables("the workspace is switched off"),
    "invalid_token": disables("the webhook's URL is wrong: " + _HOOK),
    "invalid_payload": refused(_OURS),
    "invalid_blocks": refused(_BLOCKS),
    "invalid_blocks_format": refused(_BLOCKS),
    "no_text": refused("give text or blocks"),
    "msg_too_long": refused(f"text has at most {TEXT_CHARS_MAX} characters"),
    "too_many_attachments": refused(f"at most {ATTACHMENTS_MAX} attachments"),
    "user_not_found": refused("there is no such user"),
    "channel_not_found": refused("the webhook's channel is gone: " + _HOOK),
    "channel_is_archived": refused("the webhook's channel is archived"),
    "action_prohibited": refused(_ADMIN),
    "posting_to_general_channel_denied": refused("an admin has restricted posting to #general"),
}
_EMPTY: Final = ("no_text", "invalid_payload", "missing_text_or_fallback_or_attachments")


class Credentials(msgspec.Struct, forbid_unknown_fields=True):
    """An incoming webhook's URL, or the token of an app (`xoxb-...`)."""

    webhook_url: str | None = None
    token: str | None = None


class Settings(CommonSettings, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """`channel`: where a message goes that names none."""

    channel: str | None = None


class Slack:
    """One action, `send`; fields as of chat.postMessage, or of a webhook's payload."""

    kind = "slack"
    title = "Slack: an incoming webhook, or an app's messages"
    actions = (SEND,)
    shapes = (Credentials, Settings)
    habits = Habits()

    def check(self, credentials: dict[str, Any], settings: dict[str, Any]) -> None:
        url, token = credentials.get("webhook_url"), credentials.get("token")
        if (url is None) == (token is None):
            raise Invalid("give webhook_url or token, one of them", "/credentials/webhook_url")
        if url is not None:
            check_url(url, "/credentials/webhook_url")
        elif not _TOKEN.fullmatch(token or ""):
            raise Invalid("must be a token, xoxb-...", "/credentials/token")

    def check_message(
        self, action: str, message: dict[str, Any], settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Check the fields that Slack refuses; pass on those it may have added since."""
        checked = {
            name: _read_json(value, name) if name in _JSON and isinstance(value, str) else value
            for name, value in message.items()
            if value is not None
        }
        if "token" in checked:  # the SDK would take it for the connection's
            raise HostCallRefused("slack: token is no field of a message, but of the connection")
        for name in _STRINGS:
            if not isinstance(checked.get(name, ""), str):
                raise HostCallRefused(f"slack: {name} must be a string")
        for name in _FLAGS:
            if not isinstance(checked.get(name, False), bool):
                raise HostCallRefused(f"slack: {name} must be true or false")
        if not isinstance(checked.get("metadata", {}), dict):
            raise HostCallRefused("slack: metadata must be an object")
        _check_lists(checked)
        if not any(_is_something(checked.get(name)) for name in _SOMETHING):
            raise HostCallRefused("slack: text or blocks is required")
        if len(checked.get("text", "")) > TEXT_CHARS_MAX:
            raise HostCallRefused(f"slack: text has more than {TEXT_CHARS_MAX} characters")
        _fill_thread(checked)
        if settings.get("channel") is not None and not checked.get("channel"):
            checked["channel"] = settings["channel"]
        check_size(checked, self.kind)
        return checked

    def recipient(self, action: str, message: dict[str, Any]) -> str | None:
        """Return the channel; "" is the webhook's own, or there will be an error."""
        channel = message.get("channel", "")
        return channel if isinstance(channel, str) else ""

    async def send(self, client: Egress, outgoing: Outgoing) -> Answer:
        session = _Session(client, outgoing.timeout_ms)
        credentials, settings = outgoing.credentials, outgoing.settings
        if credentials.get("token") is None:
            answer = await _post_to_webhook(session, credentials, settings, outgoing.message)
            return _posted(answer, outgoing.now_ms, credentials)
        if not outgoing.message.get("channel"):
            return Refused(None, "channel is required, in the message or in the settings")
        answer = await _call(session, credentials, settings, "chat.postMessage", outgoing.message)
        found = _found(answer, outgoing.now_ms, credentials)
        if not isinstance(found, dict):
            return found
        channel, ts = found.get("channel"), found.get("ts")
        return Sent(200, f"{channel}/{ts}" if channel and ts else None)

    async def test(
        self, client: Egress, credentials: dict[str, Any], settings: dict[str, Any], *, now_ms: int
    ) -> Answer:
        """Call auth.test; a webhook gets an empty text, which it refuses, if it is there."""
        session = _Session(client, TEST_MS_MAX)
        if credentials.get("token") is not None:
            answer = await _call(session, credentials, settings, "auth.test", {})
            found = _found(answer, now_ms, credentials)
            if not isinstance(found, dict):
                return found
            return Sent(200, f"{found.get('user')} in {found.get('team')}")
        answer = await _post_to_webhook(session, credentials, settings, {"text": ""})
        if isinstance(answer, Response) and _text(answer) in _EMPTY:
            return Sent(
                answer.status, "a webhook that is there; Slack does not say of which channel"
            )
        verdict = _posted(answer, now_ms, credentials)
        if isinstance(verdict, Sent):
            return Refused(verdict.status, "an empty text was taken: this is no webhook of Slack's")
        return verdict


def _read_json(text: str, name: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):
        raise HostCallRefused(f"slack: {name} is a text that is not JSON") from None


def _is_something(value: Any) -> bool:
    return bool(value.strip() if isinstance(value, str) else value)


def _check_lists(message: dict[str, Any]) -> None:
    for name, most in _LISTS.items():
        items = message.get(name, [])
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise HostCallRefused(f"slack: {name} must be a list of objects")
        if len(items) > most:
            raise HostCallRefused(f"slack: {name} has {len(items)} items; Slack takes {most}")
    for at, block in enumerate(message.get("blocks", [])):
        _check_block(block, f"blocks/{at}")


def _check_block(block: dict[str, Any], place: str) -> None:
    if not isinstance(block.get("type"), str) or not block["type"]:
        raise HostCallRefused(f"slack: {place} must have a type")
    text = block.get("text")
    if isinstance(text, dict):
        text = text.get("text")
    most = _BLOCK_TEXT_MAX.get(block["type"])
    if most is not None and isinstance(text, str) and len(text) > most:
        raise HostCallRefused(f"slack: {place}/text has more than {most} characters")
    for name, limit in _BLOCK_ITEMS_MAX.items():
        items = block.get(name)
        if isinstance(items, list) and len(items) > limit and block["type"] != "rich_text":
            raise HostCallRefused(f"slack: {place}/{name} has more than {limit} items")
    if len(str(block.get("block_id", ""))) > BLOCK_ID_CHARS_MAX:
        raise HostCallRefused(f"slack: {place}/block_id is longer than {BLOCK_ID_CHARS_MAX}")


def _fill_thread(message: dict[str, Any]) -> None:
    """Take a delivery's message id, `C123/1503435956.000247`, for thread_ts, too."""
    if not message.get("thread_ts"):
        return
    found = _MESSAGE_ID.fullmatch(message["thread_ts"])
    if found is None:
        raise HostCallRefused("slack: thread_ts must be a message's ts, 1503435956.000247")
    channel, message["thread_ts"] = found[1], found[2]
    if channel is not None and not message.get("channel"):
        message["channel"] = channel


class _NoAnswer(Exception):
    """Leaves the SDK when there is nothing that it could read."""


class _Session:
    """What the SDK takes for its aiohttp session: one request, through Egress; keeps the answer.

    The SDK's `proxy` and `ssl`, which it may have from the environment, are not looked at.
    """

    closed = False

    def __init__(self, client: Egress, timeout_ms: int) -> None:
        self._client = client
        self._timeout_ms = timeout_ms
        self.answer: Response | Retry | Refused | None = None

    @asynccontextmanager
    async def request(self, method: str, url: str, **asked: Any) -> AsyncIterator["_Read"]:
        assert self.answer is None, "one attempt is one request"
        body = asked["data"] or ""
        if asked.get("json") is not None:
            body = msgspec.json.encode(asked["json"]).decode()
        headers = [(name, text) for name, text in asked["headers"].items() if name != "User-Agent"]
        self.answer = await exchange(
            self._client, method, url, headers, body.encode(), timeout_ms=self._timeout_ms
        )
        if not isinstance(self.answer, Response):
            raise _NoAnswer
        yield _Read(self.answer)


class _Read:
    """An answer as the SDK reads aiohttp's."""

    content_type = "application/json"

    def __init__(self, response: Response) -> None:
        self.status = response.status
        self.headers = dict(response.headers)
        self._body = response.body

    async def text(self) -> str:
        return self._body.decode("utf-8", "replace")

    async def json(self) -> Any:
        return msgspec.json.decode(self._body)


async def _post_to_webhook(
    session: _Session, credentials: dict[str, Any], settings: dict[str, Any], body: dict[str, Any]
) -> Response | Retry | Refused:
    url = _address(credentials["webhook_url"], settings.get("base_url"))
    webhook = await imported("slack_sdk.webhook.async_client")
    client = webhook.AsyncWebhookClient(
        url, session=session, proxy="-", retry_handlers=[], logger=_SILENT
    )
    return await _asked(session, lambda: client.send_dict(body))


async def _call(
    session: _Session,
    credentials: dict[str, Any],
    settings: dict[str, Any],
    method: str,
    body: dict[str, Any],
) -> Response | Retry | Refused:
    web = await imported("slack_sdk.web.async_client")
    client = web.AsyncWebClient(
        credentials["token"],
        (settings.get("base_url") or API).rstrip("/") + "/api/",
        session=session,
        proxy="-",
        retry_handlers=[],
        logger=_SILENT,
    )
    # Not `chat_postMessage`: it warns of messages without text, and of nothing else.
    return await _asked(session, lambda: client.api_call(method, json=dict(body)))


async def _asked(
    session: _Session, ask: Callable[[], Awaitable[object]]
) -> Response | Retry | Refused:
    """Let the SDK make its request; the answer is judged by the tables above, not by the SDK."""
    errors = await imported("slack_sdk.errors")
    # It trips over what is no answer of Slack's, and its errors say the whole answer.
    with suppress(_NoAnswer, errors.SlackClientError, ValueError, TypeError, AttributeError):
        await ask()
    return session.answer or Refused(None, "Slack's SDK did not send this message; see its fields")


def _found(
    answer: Response | Retry | Refused, now_ms: int, credentials: dict[str, Any]
) -> dict[str, Any] | Retry | Refused:
    """Return what a method of the Web API answered, if that is `"ok": true`."""
    if not isinstance(answer, Response):
        return answer
    try:
        found = msgspec.json.decode(answer.body)
    except (msgspec.DecodeError, ValueError):
        found = None
    error = found.get("error") if isinstance(found, dict) else None
    if isinstance(error, str) and found.get("ok") is False:
        return _meant(answer, ERRORS.get(error), _details(error, found, credentials), now_ms)
    verdict = judged(answer, now_ms, _clean(_text(answer), credentials) or answer.reason)
    if not isinstance(verdict, Response):
        return verdict
    if isinstance(found, dict) and found.get("ok") is True:
        return found
    # Not Retry: a 2xx means that somebody took it; again could post it twice.
    text = f'expected {{"ok": true}}, got {_clean(said(answer), credentials)}'
    return Refused(answer.status, text[:ERROR_CHARS_MAX])


def _posted(answer: Response | Retry | Refused, now_ms: int, credentials: dict[str, Any]) -> Answer:
    """Return what an incoming webhook answered."""
    if not isinstance(answer, Response):
        return answer
    text = _clean(_text(answer), credentials)
    if answer.status == httpx.codes.OK:
        if text in ("ok", '{"ok":true}'):
            return Sent(answer.status)
        # Not Retry: a 2xx means that somebody took it; again could post it twice.
        error = f"expected the answer 'ok', got HTTP {answer.status}: {text or 'no body'}"
        return Refused(answer.status, error[:ERROR_CHARS_MAX])
    meaning = WEBHOOK_ERRORS.get(text)
    if meaning is not None:
        return _meant(answer, meaning, text, now_ms)
    verdict = judged(answer, now_ms, text or answer.reason)
    if isinstance(verdict, Response):
        return Refused(answer.status, f"expected the answer 'ok', got HTTP {answer.status}: {text}")
    return verdict


def _meant(answer: Response, meaning: Meaning | None, error: str, now_ms: int) -> Retry | Refused:
    remedy = "" if meaning is None else f"; {meaning.remedy}"
    text = f"Slack: {error}"[: ERROR_CHARS_MAX - len(remedy)] + remedy
    if meaning is None or meaning.then != "retry":
        is_over = meaning is not None and meaning.then == "disables"
        return Refused(answer.status, text, disables=is_over)
    wish = retry_after_ms(answer.header("retry-after"), now_ms)
    if wish is None and meaning.after_s is not None:
        wish = meaning.after_s * 1000
    return Retry(wish, answer.status, text)


def _details(error: str, found: dict[str, Any], credentials: dict[str, Any]) -> str:
    """Return the error with what Slack says of it: the scope, or what is wrong with the blocks."""
    if error == "missing_scope":
        error = f"{error}, needed: {found.get('needed')}, granted: {found.get('provided')}"
    metadata = found.get("response_metadata")
    messages = metadata.get("messages") if isinstance(metadata, dict) else None
    if isinstance(messages, list) and messages:
        error = f"{error}: {messages[0]}"
    return _clean(error, credentials)


def _text(response: Response) -> str:
    """Return the first line of the body."""
    return response.body.decode("utf-8", "replace").strip().partition("\n")[0].strip()


def _clean(text: str, credentials: Mapping[str, Any]) -> str:
    """Return what the other end said, without the credentials it may have said back."""
    url, token = credentials.get("webhook_url") or "", credentials.get("token") or ""
    path = httpx.URL(url).path if url else ""
    for hidden in (url, path, path.rpartition("/")[2], token):
        if len(hidden) > len("/services"):
            text = text.replace(hidden, "[credential]")
    return text


def _address(webhook_url: str, base_url: str | None) -> str:
    if base_url is None:
        return webhook_url
    return base_url.rstrip("/") + httpx.URL(webhook_url).raw_path.decode("ascii")
