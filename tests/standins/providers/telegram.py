"""Telegram's Bot API, as core.telegram.org/bots/api says: bots, chats, limits and its errors."""

import json
import re
from collections.abc import Callable, Mapping
from email.parser import BytesParser
from typing import Any, ClassVar
from urllib.parse import parse_qs

from tests.standins.provider import Asked, Case, HttpProvider, Reply

TOKEN = "123456:ABC-DEF1234ghIkl-zyx57W2v1u123ew11"
REVOKED = "123456:AAA-revoked-zyx57W2v1u123ew11-0000"
CHAT = 4_200_000_001
GROUP = -1_001_234_567_890
OLD_GROUP = -123_456
FORBIDDEN = {
    5_001: "bot was blocked by the user",
    5_002: "bot was kicked from the supergroup chat",
    5_003: "bot can't initiate conversation with a user",
    5_004: "user is deactivated",
}
TAGS = {"b", "strong", "i", "em", "u", "s", "a", "code", "pre", "tg-spoiler", "blockquote"}
GONE_PHOTO = "https://cameras.example.com/gone.jpg"
JSON_FIELDS = ("reply_markup", "entities", "link_preview_options", "reply_parameters")
UPLOAD_BYTES_MAX = 10 * 1024 * 1024


class Wrong(Exception):
    """Telegram says no."""

    def __init__(self, status: int, description: str, **parameters: int) -> None:
        self.status = status
        self.description = description
        self.parameters = parameters
        super().__init__(description)


class StandIn(HttpProvider):
    kind: ClassVar[str] = "telegram"
    message: ClassVar[dict[str, Any]] = {"chat_id": CHAT, "text": "The pump is off."}

    def connection(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "credentials": {"token": TOKEN},
            "settings": {"base_url": self.url, "chat_id": CHAT},
        }

    def judge(self, asked: Asked) -> Reply:
        with self.lock:
            try:
                result = self._done(asked)
            except Wrong as wrong:
                self.refused.append(wrong.description)
                return refusal(wrong.status, wrong.description, **wrong.parameters)
        return reply(200, {"ok": True, "result": result})

    def _done(self, asked: Asked) -> dict[str, Any]:
        found = re.fullmatch(r"/bot(\d+:[\w-]+)/(\w+)", asked.path)
        if found is None:
            raise Wrong(404, "Not Found")
        token, method = found.groups()
        if token != TOKEN:
            raise Wrong(401, "Unauthorized")
        fields = fields_of(asked)
        if method == "getMe":
            return {"id": 123456, "is_bot": True, "first_name": "Pump", "username": "pump_bot"}
        check = {"sendMessage": text, "sendPhoto": photo, "sendLocation": location}.get(method)
        if check is None:
            raise Wrong(404, "Not Found")
        chat_id = chat(fields)
        content = check(fields)
        self.accepted.append({"method": method, **fields, "chat_id": chat_id})
        return {
            "message_id": 1000 + len(self.accepted),
            "date": 1_700_000_000,
            "chat": {"id": chat_id, "type": "private", "first_name": "Ada"},
            **content,
        }

    def own_behaviours(self) -> Mapping[str, Callable[[Case], None]]:
        return {
            "answers 429 with `parameters.retry_after` 9": self._reply_with(
                refusal(429, "Too Many Requests: retry after 9", retry_after=9)
            ),
            "answers 409": self._reply_with(refusal(409, "Conflict: terminated by other request")),
            "does not accept the token any more": credentials(token=REVOKED),
            "finds no bot of the token": self._reply_with(refusal(404, "Not Found")),
            "does not know the chat": message(chat_id=999),
            "was blocked by the user": message(chat_id=5_001),
            "was kicked out of the group": message(chat_id=5_002),
            "may not write to the user first": message(chat_id=5_003),
            "has made the group a supergroup": message(chat_id=OLD_GROUP),
            "finds the text too long without its marks": message(
                text=f"<b>{'x' * 4_100}</b>", parse_mode="HTML"
            ),
            "cannot read the marks": message(text="<pump>off</pump>", parse_mode="HTML"),
            "cannot read the photo's URL": photo_of(GONE_PHOTO),
            "answers 200 with another body": self._reply_with(Reply(body=b"<html>Welcome</html>")),
            "answers 200 with `ok: false`": self._reply_with(
                reply(200, {"ok": False, "description": "Bad Request: not now"})
            ),
            "would get no `chat_id`": without_chat,
            "would get an empty text": message(text=" \n"),
            "would get a text of 4,097 characters without marks": message(text="x" * 4_097),
        }


def credentials(**changed: str) -> Callable[[Case], None]:
    return lambda case: case.credentials.update(changed)


def message(**changed: Any) -> Callable[[Case], None]:
    return lambda case: case.message.update(changed)


def photo_of(url: str) -> Callable[[Case], None]:
    def prepare(case: Case) -> None:
        case.action = "sendPhoto"
        case.message = {"chat_id": CHAT, "photo": url}

    return prepare


def without_chat(case: Case) -> None:
    del case.message["chat_id"]
    del case.settings["chat_id"]


def reply(status: int, body: dict[str, Any]) -> Reply:
    return Reply(
        status=status,
        body=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )


def refusal(status: int, description: str, **parameters: int) -> Reply:
    body: dict[str, Any] = {"ok": False, "error_code": status, "description": description}
    return reply(status, body | ({"parameters": parameters} if parameters else {}))


def fields_of(asked: Asked) -> dict[str, Any]:
    """Read a form, a multipart form or JSON; nested fields are JSON in a string."""
    kind = asked.headers.get("content-type", "")
    if not asked.body:
        return {}
    if kind == "application/json":
        fields = json.loads(asked.body)
    elif kind == "application/x-www-form-urlencoded":
        fields = {
            name: values[-1]
            for name, values in parse_qs(
                asked.body.decode(), strict_parsing=True, keep_blank_values=True
            ).items()
        }
    elif kind.startswith("multipart/form-data; boundary="):
        fields = multipart(kind, asked.body)
    else:
        raise Wrong(400, "Bad Request: unsupported content type")
    for name in JSON_FIELDS:
        if isinstance(fields.get(name), str):
            try:
                fields[name] = json.loads(fields[name])
            except ValueError:
                raise Wrong(400, f"Bad Request: can't parse {name} JSON object") from None
    return fields


def multipart(kind: str, body: bytes) -> dict[str, Any]:
    parsed = BytesParser().parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
    assert parsed.is_multipart()
    assert not parsed.defects
    fields: dict[str, Any] = {}
    for part in parsed.get_payload():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        fields[name] = content if part.get_filename() else content.decode()
    return fields


def chat(fields: dict[str, Any]) -> int:
    given = str(fields.get("chat_id", ""))
    if not given:
        raise Wrong(400, "Bad Request: chat_id is empty")
    known = {"@pumps": GROUP, **{str(one): one for one in (CHAT, GROUP, OLD_GROUP, *FORBIDDEN)}}
    if given not in known:
        raise Wrong(400, "Bad Request: chat not found")
    chat_id = known[given]
    if chat_id in FORBIDDEN:
        raise Wrong(403, f"Forbidden: {FORBIDDEN[chat_id]}")
    if chat_id == OLD_GROUP:
        raise Wrong(
            400,
            "Bad Request: group chat was upgraded to a supergroup chat",
            migrate_to_chat_id=GROUP,
        )
    return chat_id


def text(fields: dict[str, Any]) -> dict[str, Any]:
    shown = marked(fields, "text")
    if not shown.strip():
        raise Wrong(400, "Bad Request: message text is empty")
    if len(shown) > 4_096:
        raise Wrong(400, "Bad Request: message is too long")
    if not isinstance(fields.get("reply_markup", {}), dict):
        raise Wrong(400, "Bad Request: object expected as reply markup")
    return {"text": shown}


def photo(fields: dict[str, Any]) -> dict[str, Any]:
    given = fields.get("photo")
    if not given:
        raise Wrong(400, "Bad Request: there is no photo in the request")
    if given == GONE_PHOTO:
        raise Wrong(400, "Bad Request: failed to get HTTP URL content")
    if isinstance(given, bytes):
        if len(given) > UPLOAD_BYTES_MAX:
            raise Wrong(413, "Request Entity Too Large")
        if not given.startswith((b"\x89PNG", b"\xff\xd8\xff")):
            raise Wrong(400, "Bad Request: IMAGE_PROCESS_FAILED")
    if len(marked(fields, "caption")) > 1_024:
        raise Wrong(400, "Bad Request: message caption is too long")
    return {"photo": []}


def location(fields: dict[str, Any]) -> dict[str, Any]:
    try:
        place = {name: float(fields[name]) for name in ("latitude", "longitude")}
    except (KeyError, ValueError):
        raise Wrong(400, "Bad Request: location is empty") from None
    if abs(place["latitude"]) > 90 or abs(place["longitude"]) > 180:
        raise Wrong(400, "Bad Request: wrong location")
    return {"location": place}


def marked(fields: dict[str, Any], name: str) -> str:
    """Return the text without its marks."""
    given = str(fields.get(name, ""))
    mode = str(fields.get("parse_mode", "")).lower()
    if mode not in ("", "html", "markdown", "markdownv2"):
        raise Wrong(400, "Bad Request: unsupported parse_mode")
    if mode != "html":
        return given
    for tag in re.findall(r"</?([\w-]+)", given):
        if tag not in TAGS:
            why = f'Unsupported start tag "{tag}" at byte offset 0'
            raise Wrong(400, f"Bad Request: can't parse entities: {why}")
    return re.sub(r"<[^>]*>", "", given)
