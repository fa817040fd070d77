"""Answers like Slack: `chat.postMessage` and `auth.test` of the Web API, and incoming webhooks.

Source of the rules: docs.slack.dev: chat.postMessage with its table of errors, "Using the Slack Web
API" (a token in the header, JSON or a form, `ok` in every answer), "Rate limits", Block Kit. The
rules of webhooks are those of `examples/slack_stand_in.py`.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

from examples.slack_stand_in import judge
from tests.standins.provider import Asked, Case, HttpProvider, Reply

TOKEN = "xoxb-17653672481-19874698323-pdFZKVeTuE8sk7oOcHrzqqgy"
PATH = "/services/T0001/B0001/XkT2mZ9rQ4wLpN7vBcD1sGyH"  # a webhook's
CHANNELS = {"C0ALARMS": "open", "C0OLD": "archived", "C0SECRET": "not joined", "C0NEWS": "closed"}
SECTION_CHARS_MAX = 3_000


class StandIn(HttpProvider):
    kind: ClassVar[str] = "slack"
    message: ClassVar[dict[str, Any]] = {"text": "Boiler 3: 93 °C"}

    prefix = ""  # a path before the API's own, as behind an operator's proxy

    def connection(self) -> dict[str, Any]:
        return {
            "kind": "slack",
            "credentials": {"token": TOKEN},
            "settings": {"base_url": self.url + self.prefix, "channel": "C0ALARMS"},
        }

    def webhook(self) -> dict[str, Any]:
        """Return the credentials of an incoming webhook here."""
        return {"webhook_url": f"https://hooks.slack.com{PATH}"}

    def judge(self, asked: Asked) -> Reply:
        path = urlsplit(asked.path.removeprefix(self.prefix)).path
        kind = asked.headers.get("content-type", "")
        if path.startswith("/services/"):
            return self._webhook(path, kind, asked.body)
        if asked.headers.get("authorization") is None:
            return self._no("not_authed")
        if asked.headers["authorization"] != f"Bearer {TOKEN}":
            return self._no("invalid_auth")
        if path == "/api/auth.test":
            return _json({"ok": True, "team": "Boilers", "user": "alarms", "bot_id": "B0001"})
        if path != "/api/chat.postMessage":
            return self._no("unknown_method")
        message = _body(kind.partition(";")[0].strip(), asked.body)
        if isinstance(message, str):
            return self._no(message)
        error = _error(message)
        if error is not None:
            messages = ["[ERROR] must be less than 3001 characters"] if "blocks" in error else []
            return self._no(error, response_metadata={"messages": messages})
        with self.lock:
            self.accepted.append(message)
            ts = f"1503435956.{len(self.accepted):06}"
        text = message.get("text", "")
        section = {"type": "rich_text_section", "elements": [{"type": "text", "text": text}]}
        blocks = message.get("blocks") or [{"type": "rich_text", "elements": [section]}]
        shown = {"type": "message", "text": text, "ts": ts, "blocks": blocks}
        return _json({"ok": True, "channel": message["channel"], "ts": ts, "message": shown})

    def own_behaviours(self) -> Mapping[str, Callable[[Case], None]]:
        def spoil(**fields: Any) -> Callable[[Case], None]:
            return lambda case: case.message.update(fields)

        def says(error: str, **more: Any) -> Callable[[Case], None]:
            return lambda _case: self.then(failure(error, **more))

        def token(text: str) -> Callable[[Case], None]:
            return lambda case: case.credentials.update(token=text)

        def without_channel(case: Case) -> None:
            del case.settings["channel"]

        def limited(_case: Case) -> None:
            body = json.dumps({"ok": False, "error": "ratelimited"}).encode()
            self.then(Reply(status=429, body=body, headers={"Retry-After": "12"}))

        def hook(case: Case) -> None:
            case.credentials = self.webhook()
            del case.settings["channel"]

        def hook_says(status: int, text: str) -> Callable[[Case], None]:
            def behave(case: Case) -> None:
                hook(case)
                self.then(Reply(status=status, body=text.encode(), taken=status == 200))

            return behave

        return {
            "takes blocks in a thread": spoil(
                blocks=[{"type": "section", "text": {"type": "mrkdwn", "text": "*hot*"}}],
                thread_ts="C0ALARMS/1503435956.000247",
            ),
            "takes 6,000 letters beyond ASCII, and says them all back": spoil(text="я" * 6_000),
            "limits the rate (`ratelimited`, `Retry-After: 12`)": limited,
            "has an error of its own (`internal_error`)": says("internal_error"),
            "has a catastrophic error (`fatal_error`)": says("fatal_error"),
            "is not available (`service_unavailable`)": says("service_unavailable"),
            "moves the workspace (`team_added_to_org`)": says("team_added_to_org"),
            "does not know the token (`invalid_auth`)": token(TOKEN[:-4] + "aaaa"),
            "has revoked the token (`token_revoked`)": says("token_revoked"),
            "has closed the account (`account_inactive`)": says("account_inactive"),
            "misses a scope (`missing_scope`)": says(
                "missing_scope", needed="chat:write", provided="chat:read"
            ),
            "knows no such channel (`channel_not_found`)": spoil(channel="C0NOWHERE"),
            "is not in the channel (`not_in_channel`)": spoil(channel="C0SECRET"),
            "has archived the channel (`is_archived`)": spoil(channel="C0OLD"),
            "may not post there (`restricted_action`)": spoil(channel="C0NEWS"),
            "rejects the blocks (`invalid_blocks`)": spoil(
                blocks=[{"type": "image", "alt_text": "no image_url"}]
            ),
            "says an error that is not known here": says("solar_flare"),
            "answers 200 with garbage": lambda _case: self.then(
                Reply(status=200, body=b"<html>Log in", taken=True)
            ),
            "answers 200 with `ok` and no ts": lambda _case: self.then(
                Reply(status=200, body=b'{"ok": true}', taken=True)
            ),
            "gets no channel": without_channel,
            "gets no text and no blocks": spoil(text="  "),
            "gets a text of 40,001 characters": spoil(text="x" * 40_001),
            "gets 51 blocks": spoil(blocks=[{"type": "divider"}] * 51),
            "gets a section of 3,001 characters": spoil(
                blocks=[{"type": "section", "text": {"type": "mrkdwn", "text": "x" * 3_001}}]
            ),
            "gets a field of the wrong type": spoil(text=5),
            "webhook: takes it": hook,
            "webhook: limits the rate (429 `rate_limited`)": hook_says(429, "rate_limited"),
            "webhook: has an error of its own (500 `rollup_error`)": hook_says(500, "rollup_error"),
            "webhook: was removed (404 `no_service`)": hook_says(404, "no_service"),
            "webhook: its channel is archived (410 `channel_is_archived`)": hook_says(
                410, "channel_is_archived"
            ),
            "webhook: its channel is gone (404 `channel_not_found`)": hook_says(
                404, "channel_not_found"
            ),
            "webhook: may not post (403 `action_prohibited`)": hook_says(403, "action_prohibited"),
            "webhook: rejects the payload (400 `invalid_payload`)": hook_says(
                400, "invalid_payload"
            ),
            "webhook: answers 200 with another text": hook_says(200, "<html>Log in"),
        }

    def _webhook(self, path: str, kind: str, body: bytes) -> Reply:
        verdict = judge(path, kind, body) if path == PATH else None
        text = "no_service" if verdict is None else verdict.body
        with self.lock:
            if text == "ok":
                self.accepted.append(json.loads(body))
            else:
                self.refused.append(text)
        status = 404 if verdict is None else verdict.status
        return Reply(
            status=status or 500, body=text.encode(), headers={"Content-Type": "text/html"}
        )

    def _no(self, error: str, **more: Any) -> Reply:
        with self.lock:
            self.refused.append(error)
        return failure(error, **more)


def failure(error: str, **more: Any) -> Reply:
    """Return an error as the Web API says it: with status 200."""
    return _json({"ok": False, "error": error, **more})


def _json(shown: Mapping[str, Any]) -> Reply:
    """Return it as Slack does, whose letters beyond ASCII are all written as six bytes."""
    headers = {"Content-Type": "application/json; charset=utf-8"}
    return Reply(status=200, body=json.dumps(shown).encode(), headers=headers)


def _body(kind: str, body: bytes) -> dict[str, Any] | str:
    """Return the message, or the error of its encoding."""
    if kind == "application/x-www-form-urlencoded":
        form = dict(parse_qsl(body.decode()))
        return {
            name: json.loads(text) if name in ("blocks", "attachments", "metadata") else text
            for name, text in form.items()
        }
    if kind != "application/json":
        return "missing_post_type" if not kind else "invalid_post_type"
    try:
        message = json.loads(body)
    except ValueError:
        return "invalid_json"
    return message if isinstance(message, dict) else "json_not_object"


def _error(message: dict[str, Any]) -> str | None:
    text, blocks = message.get("text", ""), message.get("blocks", [])
    attachments = message.get("attachments", [])
    of_channel = {"archived": "is_archived", "not joined": "not_in_channel"}
    of_channel["closed"] = "restricted_action"
    state = CHANNELS.get(message.get("channel", ""))
    wrong: list[tuple[bool, str]] = [
        (state is None, "channel_not_found"),
        (state != "open", of_channel.get(state or "", "")),
        (not isinstance(text, str), "invalid_arguments"),
        (not blocks and not attachments and not str(text).strip(), "no_text"),
        (len(str(text)) > 40_000, "msg_too_long"),
        (not isinstance(blocks, list) or len(blocks) > 50, "invalid_blocks"),
        (not isinstance(attachments, list) or len(attachments) > 100, "too_many_attachments"),
    ]
    error = next((error for is_so, error in wrong if is_so), None)
    if error is None and any(_is_wrong(block) for block in blocks):
        return "invalid_blocks"
    return error


def _is_wrong(block: Any) -> bool:
    if not isinstance(block, dict) or not isinstance(block.get("type"), str):
        return True
    if block["type"] == "image":
        return not (block.get("image_url") or block.get("slack_file"))
    if block["type"] == "section":
        text = (block.get("text") or {}).get("text", "")
        return not (text or block.get("fields")) or len(text) > SECTION_CHARS_MAX
    return False
