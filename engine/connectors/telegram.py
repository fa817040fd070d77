"""Telegram, by a bot: text, photos and places.

Source: core.telegram.org/bots/api: "Making requests", ResponseParameters, the three methods; its
        descriptions of errors: github.com/tdlib/telegram-bot-api. python-telegram-bot writes the
        request. Its answer is read here: the library's exceptions drop the status, and a message
        that it cannot parse yet was sent all the same.
Never:  lets the library know the token (it logs URLs), read a file, or send anything by itself.
"""

import base64
import binascii
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import httpx
import msgspec

from engine.connectors.contract import (
    SEND_MS_MAX,
    Answer,
    CommonSettings,
    Habits,
    Outgoing,
    Rate,
    Refused,
    Retry,
    Sent,
    check_size,
    exchange,
    imported,
    judged,
    said,
)
from engine.egress import Egress, Response
from engine.errors import HostCallRefused, Invalid

if TYPE_CHECKING:
    from telegram import Bot

API: Final = "https://api.telegram.org"
TEXT_CHARS_MAX: Final = 4_096  # without the marks of a parse_mode, which Telegram takes out first
CAPTION_CHARS_MAX: Final = 1_024
ACTIONS: Final = ("send", "sendMessage", "sendPhoto", "sendLocation")  # the first two are one
_TEXTS: Final = {  # its text, and the field that marks it without a parse_mode
    "send": ("text", "entities"),
    "sendMessage": ("text", "entities"),
    "sendPhoto": ("caption", "caption_entities"),
    "sendLocation": ("", ""),
}
_TOKEN: Final = re.compile(r"[0-9]{1,20}:[A-Za-z0-9_-]{20,128}")
_FILE_ID: Final = re.compile(r"[A-Za-z0-9_-]{20,512}")
_HIDDEN: Final = "[credential]"
_NO_TOKEN: Final = "0:the-token-stays-outside-of-the-library"  # noqa: S105 - and it is none

_REMEDY: Final = "PUT the connection with a valid token (@BotFather shows it)"
# (status, in the description) -> what it means; the first that fits. Else: contract.judged.
# Of 400 and 403 everything else is about this chat or this message: refused, and the next may go.
ERRORS: Final[tuple[tuple[int, str, str], ...]] = (
    (401, "", "token"),  # revoked, or of a bot that is gone
    (404, "", "token"),  # Telegram finds no bot of this name: the token is not well-formed
    (400, "failed to get http url content", "retry"),  # the photo's server; nothing was sent
    (409, "", "retry"),  # another use of the bot is under way
    (429, "", "retry"),  # after parameters.retry_after
)


class Credentials(msgspec.Struct, forbid_unknown_fields=True):
    token: str


class Settings(CommonSettings, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    chat_id: int | str | None = None  # where a message goes that names no chat
    parse_mode: str | None = None  # of messages that have neither their own nor entities


class Telegram:
    """Credentials `{token}`; settings `{chat_id?, parse_mode?}`."""

    kind = "telegram"
    title = "Telegram: messages, photos and places by a bot"
    actions = ACTIONS
    shapes = (Credentials, Settings)
    habits = Habits(rate=Rate(30))  # "no more than 30 messages per second": the Bots FAQ

    def check(self, credentials: dict[str, Any], settings: dict[str, Any]) -> None:
        if not _TOKEN.fullmatch(credentials["token"]):
            raise Invalid("must be a bot's token, as 123456:ABC...", "/credentials/token")
        if settings.get("chat_id") is not None and not _is_chat(settings["chat_id"]):
            raise Invalid("must be a number or @name", "/settings/chat_id")

    def check_message(
        self, action: str, message: dict[str, Any], settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Check what Telegram surely refuses; pass on fields that it may have added since."""
        check_size(message, self.kind)
        message = {name: value for name, value in message.items() if value is not None}
        if settings.get("chat_id") is not None:
            message.setdefault("chat_id", settings["chat_id"])
        if "chat_id" not in message:
            raise HostCallRefused("telegram: chat_id is required, here or in the settings")
        if not _is_chat(message["chat_id"]):
            raise HostCallRefused("telegram: chat_id must be a number or @name")
        _CHECKS[action](message)
        written, marks = _TEXTS[action]
        if settings.get("parse_mode") is not None and written in message and marks not in message:
            message.setdefault("parse_mode", settings["parse_mode"])
        _check_length(message, "text", TEXT_CHARS_MAX)
        _check_length(message, "caption", CAPTION_CHARS_MAX)
        return message

    def recipient(self, action: str, message: dict[str, Any]) -> str | None:
        return str(message["chat_id"])

    async def send(self, client: Egress, outgoing: Outgoing) -> Answer:
        return await _call(
            client,
            _CALLS[outgoing.action],
            dict(outgoing.message),
            _Address(outgoing.credentials["token"], outgoing.settings.get("base_url") or API),
            _message_id,
            now_ms=outgoing.now_ms,
            timeout_ms=outgoing.timeout_ms,
        )

    async def test(
        self, client: Egress, credentials: dict[str, Any], settings: dict[str, Any], *, now_ms: int
    ) -> Answer:
        """Ask for the bot's own name."""
        return await _call(
            client,
            _get_me,
            {},
            _Address(credentials["token"], settings.get("base_url") or API),
            _username,
            now_ms=now_ms,
            timeout_ms=SEND_MS_MAX,
        )


# ---------------------------------------------------------------- the message


def _is_chat(value: Any) -> bool:
    if isinstance(value, str):
        return re.fullmatch(r"@\w{1,64}|-?[0-9]{1,19}", value, re.ASCII) is not None
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _check_text(message: dict[str, Any]) -> None:
    _check_string(message, "text")
    if not message["text"].strip():
        raise HostCallRefused("telegram: text is empty")


def _check_photo(message: dict[str, Any]) -> None:
    if ("photo" in message) == ("photo_base64" in message):
        raise HostCallRefused("telegram: photo or photo_base64 is required, not both")
    if "photo" in message:
        _check_string(message, "photo")
        photo = message["photo"]
        if not photo.startswith(("https://", "http://")) and not _FILE_ID.fullmatch(photo):
            raise HostCallRefused("telegram: photo must be an http(s) URL or a file_id")
    else:
        _check_string(message, "photo_base64")
        try:
            base64.b64decode(message["photo_base64"], validate=True)
        except (binascii.Error, ValueError):
            raise HostCallRefused("telegram: photo_base64 is not base64") from None
    if "caption" in message:
        _check_string(message, "caption")


def _check_place(message: dict[str, Any]) -> None:
    for name, most in (("latitude", 90), ("longitude", 180)):
        value = message.get(name)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not -most <= value <= most
        ):
            raise HostCallRefused(f"telegram: {name} must be a number from -{most} to {most}")


_CHECKS: Final = {
    "send": _check_text,
    "sendMessage": _check_text,
    "sendPhoto": _check_photo,
    "sendLocation": _check_place,
}


def _check_string(message: dict[str, Any], name: str) -> None:
    if name not in message:
        raise HostCallRefused(f"telegram: {name} is required")
    if not isinstance(message[name], str):
        raise HostCallRefused(f"telegram: {name} must be a string")


def _check_length(message: dict[str, Any], name: str, chars_max: int) -> None:
    if name in message:
        _check_string(message, name)
    # With a parse_mode the marks do not count, and only Telegram knows which they are.
    if "parse_mode" not in message and len(message.get(name, "")) > chars_max:
        raise HostCallRefused(
            f"telegram: {name} has {len(message[name])} characters; Telegram takes {chars_max}"
        )


# ---------------------------------------------------------------- the request


class _Address:
    """Where a bot's methods are. It has no repr that could tell the token."""

    __slots__ = ("_base_url", "_token")

    def __init__(self, token: str, base_url: str) -> None:
        self._token = token
        self._base_url = base_url.rstrip("/")

    def url(self, method: str) -> str:
        return f"{self._base_url}/bot{self._token}/{method}"

    def without_token(self, text: str) -> str:
        """Return what a server says, without the token: it stands in every URL."""
        bot_id, _, secret = self._token.partition(":")
        for part in (self._token, f"{bot_id}%3A{secret}", f"{bot_id}%3a{secret}", secret):
            text = text.replace(part, _HIDDEN)
        return text


Exchange: TypeAlias = Callable[[str, str, bytes], Awaitable[Answer]]
"""Makes one request: the method of the Bot API, the content's type, the content."""


async def _call(
    client: Egress,
    call: Callable[["Bot", dict[str, Any]], Awaitable[object]],
    message: dict[str, Any],
    address: _Address,
    found: Callable[[dict[str, Any]], str | None],
    *,
    now_ms: int,
    timeout_ms: int,
) -> Answer:
    """Let the library write one request; return what the server answers to it."""

    async def one_exchange(method: str, content_type: str, content: bytes) -> Answer:
        response = await exchange(
            client,
            "POST",
            address.url(method),
            [("Content-Type", content_type)],
            content,
            timeout_ms=timeout_ms,
        )
        if not isinstance(response, Response):
            return response
        return _judged(response, address, found, now_ms)

    await imported("telegram")  # half a second, once: not of the attempt's time
    return await _library()(one_exchange, call, message)


async def _send_message(bot: "Bot", message: dict[str, Any]) -> object:
    chat_id, text = message.pop("chat_id"), message.pop("text")
    return await bot.send_message(chat_id, text, api_kwargs=message)


async def _send_photo(bot: "Bot", message: dict[str, Any]) -> object:
    from telegram import PhotoSize

    chat_id = message.pop("chat_id")
    if "photo_base64" in message:
        photo = base64.b64decode(message.pop("photo_base64"))
        return await bot.send_photo(chat_id, photo, filename="photo.jpg", api_kwargs=message)
    # Not the string itself: the library would take it for the path of a file of ours, and send it.
    known = PhotoSize(message.pop("photo"), "-", 0, 0)
    return await bot.send_photo(chat_id, known, api_kwargs=message)


async def _send_location(bot: "Bot", message: dict[str, Any]) -> object:
    chat_id, place = message.pop("chat_id"), (message.pop("latitude"), message.pop("longitude"))
    return await bot.send_location(chat_id, *place, api_kwargs=message)


async def _get_me(bot: "Bot", message: dict[str, Any]) -> object:
    return await bot.get_me(api_kwargs=message)


_CALLS: Final = {
    "send": _send_message,
    "sendMessage": _send_message,
    "sendPhoto": _send_photo,
    "sendLocation": _send_location,
}


@cache
def _library() -> Callable[..., Awaitable[Answer]]:
    """Return how one request is made with python-telegram-bot, which has been loaded."""
    from telegram import Bot
    from telegram.error import TelegramError
    from telegram.request import BaseRequest, RequestData

    class Answered(TelegramError):
        """Carries our answer through the library, which passes on its own errors alone."""

        def __init__(self, answer: Answer) -> None:
            self.answer = answer
            super().__init__("answered")

    class Request(BaseRequest):
        """Sends by `exchange`, once, and ends the library's part there."""

        __slots__ = ("_exchange",)

        def __init__(self, exchange: Exchange) -> None:
            self._exchange = exchange

        @property
        def read_timeout(self) -> None:
            return None

        async def initialize(self) -> None:
            """Have nothing to open: the pool is Egress'."""

        async def shutdown(self) -> None:
            """Have nothing to close."""

        async def do_request(
            self, url: str, method: str, request_data: RequestData | None = None, *_: Any, **__: Any
        ) -> tuple[int, bytes]:
            given = request_data or RequestData()
            form = httpx.Request(
                method, url, data=given.json_parameters, files=given.multipart_data or None
            )
            content_type = form.headers.get("Content-Type", "application/x-www-form-urlencoded")
            answer = await self._exchange(url.rpartition("/")[2], content_type, form.read())
            raise Answered(answer)

    async def with_bot(
        exchange: Exchange,
        call: Callable[[Bot, dict[str, Any]], Awaitable[object]],
        message: dict[str, Any],
    ) -> Answer:
        request = Request(exchange)
        bot = Bot(_NO_TOKEN, request=request, get_updates_request=request)
        try:
            await call(bot, message)
        except Answered as answered:
            return answered.answer
        raise AssertionError("the library made no request")

    return with_bot


# ---------------------------------------------------------------- the answer


def _judged(
    response: Response,
    address: _Address,
    found: Callable[[dict[str, Any]], str | None],
    now_ms: int,
) -> Answer:
    body = _object(response.body)
    description = address.without_token(str(body.get("description") or said(response)))
    parameters = body.get("parameters")
    parameters = parameters if isinstance(parameters, dict) else {}
    if response.status == httpx.codes.OK:
        result = body.get("result")
        name = found(result) if body.get("ok") is True and isinstance(result, dict) else None
        if name is not None:
            return Sent(response.status, name)
        # Not Retry: a 2xx means that somebody took it; again could say it twice.
        return Refused(response.status, f"expected Telegram's answer, got {description}")
    verdict = judged(response, now_ms, description)
    if isinstance(verdict, Response):
        return Refused(response.status, f"expected Telegram's answer, got {description}")
    if "migrate_to_chat_id" in parameters:
        moved = f"the group has become a supergroup: use chat_id {parameters['migrate_to_chat_id']}"
        return Refused(response.status, f"{verdict.error}; {moved}")
    for status, part, meaning in ERRORS:
        if response.status != status or part not in description.lower():
            continue
        if meaning == "token":
            return Refused(status, f"{verdict.error}; {_REMEDY}", disables=True)
        wait_ms = verdict.after_ms if isinstance(verdict, Retry) else None
        seconds = parameters.get("retry_after")
        if isinstance(seconds, int) and seconds >= 0:
            wait_ms = seconds * 1000
        return Retry(wait_ms, status, verdict.error)
    return verdict


def _object(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}


def _message_id(result: dict[str, Any]) -> str | None:
    number = result.get("message_id")
    return str(number) if isinstance(number, int) else None


def _username(result: dict[str, Any]) -> str | None:
    name = result.get("username")
    return f"@{name}" if isinstance(name, str) else None
