"""Twilio: text messages, WhatsApp and voice calls, through the maintained SDK, `twilio`.

Path:   outbox -> here -> twilio.rest -> _Wire -> egress -> api.twilio.com; API -> callback
Never:  lets the SDK open a connection; takes a message as sent unless Twilio names its sid.

Source: twilio.com/docs: Message and Call resource, "Error and Warning Dictionary", "Security".
"""

import base64
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, urlencode
from xml.sax.saxutils import escape

import msgspec

from engine.connectors.contract import (
    ERROR_CHARS_MAX,
    SEND,
    Answer,
    Callback,
    CallbackRefused,
    CommonSettings,
    Guard,
    Habits,
    Outgoing,
    Refused,
    Retry,
    Sent,
    Told,
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

API: Final = "https://api.twilio.com"
BODY_CHARS_MAX: Final = 1_600
MEDIA_MAX: Final = 10
TWIML_CHARS_MAX: Final = 4_000
VALIDITY_S: Final = range(1, 36_001)

_AROUND: Final = (
    '<?xml version="1.0" encoding="UTF-8"?><Response><Say language="" voice=""></Say></Response>'
)
_WHATSAPP: Final = "whatsapp:"
_SID: Final = re.compile(r"(SM|MM|CA)[0-9a-fA-F]{32}")
_ACCOUNT: Final = re.compile(r"AC[0-9a-fA-F]{32}")
_KEY: Final = re.compile(r"SK[0-9a-fA-F]{32}")
_SERVICE: Final = re.compile(r"MG[0-9a-fA-F]{32}")
_SECRET: Final = re.compile(r"[!-~]{8,128}")
_E164: Final = re.compile(r"\+[1-9][0-9]{6,14}")
_CHANNEL: Final = re.compile(r"[a-z]+:\S{1,250}")  # whatsapp:+1..., messenger:..., sip:..., client:
_SENDER: Final = re.compile(r"[A-Za-z0-9 +&_-]{1,11}")  # a name, or a short code
_BETWEEN_DIGITS: Final = re.compile(r"[\s().-]")
_INNER_CAPITAL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_PRICE: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?", re.ASCII)
_NOT_IN_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

# The SDK's arguments by type; a test compares the names with the SDK's. `from_` is `from`.
_MESSAGE: Final[Mapping[str, type]] = {
    **dict.fromkeys(
        ("to", "from", "messaging_service_sid", "body", "content_sid", "content_variables",
         "status_callback", "application_sid", "content_retention", "address_retention",
         "traffic_type", "schedule_type", "send_at", "message_intent", "risk_check",
         "fallback_from"), str),
    **dict.fromkeys(("validity_period", "attempt"), int),
    **dict.fromkeys(("media_url", "persistent_action"), list),
    **dict.fromkeys(
        ("provide_feedback", "force_delivery", "smart_encoded", "shorten_urls", "send_as_mms"),
        bool),
    "max_price": float,
}  # fmt: skip
_CALL: Final[Mapping[str, type]] = {
    **dict.fromkeys(
        ("to", "from", "twiml", "url", "application_sid", "method", "fallback_url",
         "fallback_method", "status_callback", "status_callback_method", "send_digits",
         "recording_channels", "recording_status_callback", "recording_status_callback_method",
         "recording_configuration_id", "recording_track", "machine_detection", "trim", "caller_id",
         "async_amd", "async_amd_status_callback", "async_amd_status_callback_method", "passports",
         "byoc", "call_reason", "client_notification_url"), str),
    **dict.fromkeys(
        ("timeout", "time_limit", "machine_detection_timeout",
         "machine_detection_speech_threshold", "machine_detection_speech_end_threshold",
         "machine_detection_silence_timeout"), int),
    **dict.fromkeys(("status_callback_event", "recording_status_callback_event"), list),
    "record": bool,
}  # fmt: skip
_NAMES: Final = _MESSAGE.keys() | _CALL.keys() | {"say"}
_WHAT_TO_SAY: Final = ("twiml", "url", "say", "application_sid")
_CALL_EVENTS: Final = ["initiated", "ringing", "answered", "completed"]  # completed: any end
_TYPES: Final[Mapping[type, str]] = {
    str: "a string", int: "a whole number", float: "a number", bool: "true or false",
    list: "a list of strings",
}  # fmt: skip

_PUT: Final = "PUT the connection with a valid account_sid and token"
_BAD_TO: Final = "to must be a reachable number in E.164, +14155552671"
_BAD_FROM: Final = "from must be a number, a sender or a service of this account that can do it"
_NO_BODY: Final = "give body, media_url or content_sid"
_CONSOLE: Final = "activate or fund the account in Twilio's console, then enable the connection"
_GEO: Final = "allow the country in Twilio's console (Geo permissions), then recover"
_TRIAL: Final = "a trial account reaches verified numbers only: verify it, or upgrade"
_TEMPLATE: Final = "check content_sid and content_variables against the template"
_OUTSIDE: Final = "more than 24 h after their last message only a template goes: content_sid"

# By the "code" of an error's body. What is not here is judged by its HTTP status.
ERRORS: Final[Mapping[int, Meaning]] = {
    # now or later
    10004: retry("too many calls at once on this account", 10),
    14107: retry("too many messages between two numbers: Twilio holds them for 30 s", 30),
    20162: retry("another update is in progress"),
    20409: retry("another update is in progress"),
    20429: retry("too many requests at once: lower the connection's rate or concurrency"),
    20500: retry("Twilio's own error"),
    20503: retry("Twilio is not available"),
    20504: retry("Twilio's own error"),
    21611: retry("the sender's queue is full: slow down, or use a messaging service", 60),
    21730: retry("Twilio is under maintenance", 60),
    30001: retry("the sender's queue is full: slow down, or use a messaging service", 60),
    63018: retry("too many messages through this channel", 10),
    63038: retry("the account's messages of 24 h are used up", 3_600),
    # nothing goes through this connection any more
    10001: disables(_CONSOLE),
    20003: disables(_PUT),
    20005: disables(_CONSOLE),
    20008: disables("these are test credentials: " + _PUT),
    20404: disables("no such account: " + _PUT),
    30002: disables(_CONSOLE),
    # this message never will
    20403: refused("the key may not do this: give it the permission, then recover"),
    21201: refused("to is required"),
    21202: refused("a premium number cannot be called"),
    21203: refused(_GEO),
    21205: refused("url must be an absolute URL that Twilio can reach"),
    21210: refused("buy or verify the number in from"),
    21211: refused(_BAD_TO),
    21212: refused(_BAD_FROM),
    21213: refused("from is required, in the message or in the settings"),
    21214: refused(_BAD_TO),
    21215: refused(_GEO),
    21216: refused("Twilio blocks calls to this number"),
    21217: refused(_BAD_TO),
    21219: refused(_TRIAL),
    21264: refused("buy or verify the number in from"),
    21265: refused("a short code cannot be written to"),
    21266: refused("to and from must differ"),
    21267: refused("a trial account has no alphanumeric sender: use a number in from"),
    21268: refused("a premium number cannot be written to"),
    21401: refused(_BAD_TO),
    21402: refused("url must be an absolute URL that Twilio can reach"),
    21407: refused(_BAD_FROM),
    21408: refused(_GEO),
    21421: refused(_BAD_TO),
    21602: refused(_NO_BODY),
    21603: refused("from is required, in the message or in the settings"),
    21604: refused("to is required"),
    21605: refused(f"body has at most {BODY_CHARS_MAX} characters"),
    21606: refused(_BAD_FROM),
    21607: refused(_BAD_FROM),
    21608: refused(_TRIAL),
    21609: refused("CLOUDCODE_PUBLIC_URL must be a public URL whose host has no underscore"),
    21610: refused("they answered STOP to this sender; they can write START"),
    21612: refused("Twilio has no route from this sender to this number: use another from"),
    21614: refused("to is not a mobile number"),
    21617: refused(f"body has at most {BODY_CHARS_MAX} characters"),
    21618: refused("Twilio does not send this body"),
    21619: refused(_NO_BODY),
    21620: refused("every media_url must be a URL that Twilio can reach"),
    21621: refused("the sender cannot send media"),
    21622: refused("the account cannot send media"),
    21623: refused(f"at most {MEDIA_MAX} media_url"),
    21624: refused(f"validity_period is 1 to {VALIDITY_S[-1]} seconds"),
    21626: refused("status_callback_event has a wrong name"),
    21635: refused("a landline gets no messages"),
    21654: refused(_TEMPLATE),
    21655: refused(_TEMPLATE),
    21656: refused(_TEMPLATE),
    21657: refused(_BAD_FROM),
    21658: refused("a field is too long"),
    21659: refused(_BAD_FROM),
    21660: refused(_BAD_FROM),
    21661: refused(_BAD_FROM),
    21701: refused("check messaging_service_sid"),
    21703: refused("add a sender to the messaging service, then recover"),
    21704: refused("add a sender to the messaging service, then recover"),
    21705: refused("check messaging_service_sid"),
    21709: refused(_BAD_FROM),
    63003: refused("there is no such recipient in this channel"),
    63007: refused("from is no sender of this channel: set it up in Twilio's console"),
    63015: refused("the recipient has not joined the sandbox"),
    63016: refused(_OUTSIDE),
    63024: refused("there is no such recipient in this channel"),
    63031: refused("to and from must differ"),
    63032: refused("WhatsApp does not deliver this to this person"),
    # of callbacks only: taken, and then not delivered
    30003: refused("the phone is off or out of reach"),
    30004: refused("the phone blocks this sender"),
    30005: refused("there is no such number"),
    30006: refused("a landline, or a carrier that takes no messages"),
    30007: refused("the carrier filtered it: see Twilio's messaging policy"),
    30008: refused("the carrier does not say why"),
    30034: refused("the sender is not registered (US A2P 10DLC)"),
    30036: refused("it was older than its validity_period"),
}

# The last words of a message and of a call; any other word is on the way.
_ENDS: Final[Mapping[str, Literal["delivered", "failed"]]] = {
    "delivered": "delivered", "read": "delivered", "completed": "delivered",
    "undelivered": "failed", "failed": "failed", "canceled": "failed", "busy": "failed",
    "no-answer": "failed",
}  # fmt: skip


class Credentials(msgspec.Struct, forbid_unknown_fields=True):
    """The account with its token, or with an API key; callbacks are signed with the token."""

    account_sid: str
    auth_token: str | None = None
    api_key_sid: str | None = None
    api_key_secret: str | None = None


class Settings(CommonSettings, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """`from`: the sender of messages that name none: a number, a name, or a service `MG...`."""

    from_: str | None = msgspec.field(name="from", default=None)


class Twilio:
    """Actions `send` (SMS and MMS), `whatsapp`, `call`; `to from body` as in Twilio's libraries."""

    kind = "twilio"
    title = "Twilio: text messages, WhatsApp, voice calls"
    actions = (SEND, "whatsapp", "call")
    shapes = (Credentials, Settings)
    habits = Habits(guard=Guard(recipient_per_hour=20, per_day=1_000))  # each one costs money

    def check(self, credentials: dict[str, Any], settings: dict[str, Any]) -> None:
        _check_text(credentials, "account_sid", _ACCOUNT, "must be AC and 32 hexadecimal digits")
        _check_text(credentials, "auth_token", _SECRET, "is not a token")
        _check_text(credentials, "api_key_sid", _KEY, "must be SK and 32 hexadecimal digits")
        _check_text(credentials, "api_key_secret", _SECRET, "is not a secret")
        key = [credentials.get(name) for name in ("api_key_sid", "api_key_secret")]
        if any(key) and not all(key):
            raise Invalid("api_key_sid and api_key_secret go together", "/credentials")
        if not any(key) and not credentials.get("auth_token"):
            raise Invalid("auth_token, or api_key_sid and api_key_secret", "/credentials")
        sender = settings.get("from")
        if sender is not None and not _is_sender(_without_spaces(sender)):
            raise Invalid("must be a number +14155552671, a name, or MG...", "/settings/from")

    def check_message(
        self, action: str, message: dict[str, Any], settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the message with its sender and with `to` in E.164; refuse what Twilio would."""
        checked = _by_our_names(message)
        price = checked.get("max_price")
        if isinstance(price, str) and _PRICE.fullmatch(price):
            checked["max_price"] = float(price)
        for one in ("media_url", "persistent_action"):
            if isinstance(checked.get(one), str):
                checked[one] = [checked[one]]
        if isinstance(checked.get("content_variables"), dict):
            checked["content_variables"] = msgspec.json.encode(
                checked["content_variables"]
            ).decode()
        say = checked.pop("say", None) if action == "call" else None
        _check_fields(checked, _CALL if action == "call" else _MESSAGE)
        if say is not None:
            checked["say"] = _checked_say(say)
        _fill_sender(action, checked, settings.get("from"))
        checked["to"] = _checked_to(action, checked.get("to"))
        if action == "call":
            _check_call(checked)
        else:
            _check_text_message(checked)
        check_size(checked, self.kind)
        return checked

    def recipient(self, action: str, message: dict[str, Any]) -> str | None:
        to = message.get("to")
        return to if isinstance(to, str) else None

    async def send(self, client: Egress, outgoing: Outgoing) -> Answer:
        message = dict(outgoing.message)
        if "from" in message:
            message["from_"] = message.pop("from")
        told = outgoing.callback_url if outgoing.credentials.get("auth_token") else None
        if told is not None and "status_callback" not in message:  # the token signs what is told
            message["status_callback"] = told
            if outgoing.action == "call":
                message.setdefault("status_callback_event", _CALL_EVENTS)
        if "say" in message:
            message["twiml"] = await _twiml(message.pop("say"))

        async def create(twilio: Any) -> None:
            resource = twilio.calls if outgoing.action == "call" else twilio.messages
            await resource.create_async(**message)

        wire = _Wire(client, outgoing.settings.get("base_url"), outgoing.timeout_ms)
        answer = await _ask(create, wire, outgoing.credentials, outgoing.now_ms)
        return _sent(answer, outgoing.credentials) if isinstance(answer, Response) else answer

    async def test(
        self, client: Egress, credentials: dict[str, Any], settings: dict[str, Any], *, now_ms: int
    ) -> Answer:
        """Read the account; with an API key, which may not, a page of one message."""
        sid = credentials["account_sid"]
        by_key = bool(credentials.get("api_key_sid"))

        async def look(twilio: Any) -> None:
            if by_key:
                await twilio.messages.page_async(page_size=1)
            else:
                await twilio.api.accounts(sid).fetch_async()

        wire = _Wire(client, settings.get("base_url"))
        answer = await _ask(look, wire, credentials, now_ms)
        if not isinstance(answer, Response):
            return answer
        found = _object(answer.body)
        if by_key and isinstance(found.get("messages"), list):
            return Sent(answer.status, "an API key of this account")
        if found.get("sid") != sid:
            return _unexpected(answer, "the account", credentials)
        if found.get("status") != "active":
            return Refused(answer.status, f"the account is {found.get('status')}; {_CONSOLE}")
        return Sent(answer.status, f"{found.get('friendly_name')} (active)")

    def callback(
        self, credentials: dict[str, Any], settings: dict[str, Any], callback: Callback
    ) -> list[Told]:
        token = credentials.get("auth_token")
        if not token:
            raise CallbackRefused("the connection has no auth_token, which callbacks are signed by")
        signature = callback.headers.get("x-twilio-signature", "")
        try:
            told = dict(parse_qsl(callback.body.decode(), keep_blank_values=True))
        except ValueError:
            raise CallbackRefused("the body is not a form") from None
        validator = import_module("twilio.request_validator").RequestValidator(token)
        if not signature or not validator.validate(callback.url, told, signature):
            raise CallbackRefused("X-Twilio-Signature is missing or wrong")
        status = told.get("MessageStatus") or told.get("CallStatus")
        if callback.delivery_id is None or not status:
            return []
        final = _ENDS.get(status)
        return [
            Told(
                delivery_id=callback.delivery_id,
                status=status,
                final=final,
                error=_late_error(status, told) if final == "failed" else None,
                message_id=told.get("MessageSid") or told.get("CallSid"),
            )
        ]


def _check_text(given: dict[str, Any], name: str, form: re.Pattern[str], what: str) -> None:
    value = given.get(name)
    if value is not None and not form.fullmatch(value):
        raise Invalid(what, f"/credentials/{name}")


def _by_our_names(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is given by the Python library's names, without `None`.

    `mediaUrl` is what Twilio's library for JavaScript says, `MediaUrl` its API, `from_` Python's.
    """
    found: dict[str, tuple[str, Any]] = {}
    for name, value in message.items():
        ours = _INNER_CAPITAL.sub("_", name).lower()
        ours = "from" if ours == "from_" else ours if ours in _NAMES else name
        if value is None:
            continue
        if ours in found:
            raise HostCallRefused(f"twilio: {found[ours][0]} and {name} are one field; give one")
        found[ours] = name, value
    return {ours: value for ours, (_, value) in found.items()}


def _check_fields(message: dict[str, Any], known: Mapping[str, type]) -> None:
    """Refuse unknown names, too: the SDK could not send them, and most are a slip of the pen."""
    for name, value in message.items():
        if name not in known:
            raise HostCallRefused(f"twilio: there is no field {name[:80]!r}; {_names(known)}")
        wanted = known[name]
        right = type(value) is wanted or (wanted is float and type(value) is int)
        if right and wanted is list:
            right = bool(value) and all(isinstance(one, str) for one in value)
        if not right:
            raise HostCallRefused(f"twilio: {name} must be {_TYPES[wanted]}")


def _names(known: Mapping[str, type]) -> str:
    return "there are " + ", ".join(sorted(known))


def _fill_sender(action: str, message: dict[str, Any], default: str | None) -> None:
    if default is not None and not {"from", "messaging_service_sid"} & message.keys():
        message["from"] = default
    sender = message.get("from")
    if sender is None and (action == "call" or "messaging_service_sid" not in message):
        raise HostCallRefused("twilio: from is required, in the message or in the settings")
    if sender is None:
        return
    sender = _without_spaces(sender)
    if not _is_sender(sender):
        raise HostCallRefused("twilio: from must be a number +14155552671, a name, or MG...")
    if not _SERVICE.fullmatch(sender):
        message["from"] = _for_whatsapp(sender) if action == "whatsapp" else sender
    elif action == "call":
        raise HostCallRefused("twilio: a call needs a number in from, not a messaging service")
    else:
        del message["from"]
        message.setdefault("messaging_service_sid", sender)


def _is_sender(sender: str) -> bool:
    if sender.startswith("+"):
        return _E164.fullmatch(sender) is not None
    return any(form.fullmatch(sender) for form in (_SENDER, _SERVICE, _CHANNEL))


def _checked_to(action: str, to: str | None) -> str:
    if not to:
        raise HostCallRefused("twilio: to is required")
    to = _without_spaces(to)
    if action == "whatsapp":
        to = _for_whatsapp(to)
    if _E164.fullmatch(to.removeprefix(_WHATSAPP)):
        return to
    if _CHANNEL.fullmatch(to) and not to.startswith(_WHATSAPP):
        return to
    raise HostCallRefused("twilio: to must be one number in E.164, +14155552671")


def _without_spaces(number: str) -> str:
    """Return `+1 (415) 555-2671` as +14155552671, so that one person is one recipient."""
    prefix, plus, digits = number.strip().partition("+")
    alone = _BETWEEN_DIGITS.sub("", digits)
    return prefix + plus + alone if alone.isdigit() else number.strip()


def _for_whatsapp(number: str) -> str:
    return number if number.startswith(_WHATSAPP) else _WHATSAPP + number


def _check_text_message(message: dict[str, Any]) -> None:
    if not any(message.get(name) for name in ("body", "media_url", "content_sid")):
        raise HostCallRefused(f"twilio: {_NO_BODY}")
    if len(message.get("body", "")) > BODY_CHARS_MAX:
        raise HostCallRefused(f"twilio: body has more than {BODY_CHARS_MAX} characters")
    if len(message.get("media_url", [])) > MEDIA_MAX:
        raise HostCallRefused(f"twilio: media_url has more than {MEDIA_MAX} entries")
    if message.get("validity_period", 1) not in VALIDITY_S:
        raise HostCallRefused(f"twilio: validity_period must be 1 to {VALIDITY_S[-1]} seconds")
    for url in message.get("media_url", []):
        _check_public(url, "media_url")


def _check_call(message: dict[str, Any]) -> None:
    given = [name for name in _WHAT_TO_SAY if name in message]
    if len(given) != 1:
        raise HostCallRefused(f"twilio: a call needs exactly one of {', '.join(_WHAT_TO_SAY)}")
    if len(message.get("twiml", "")) > TWIML_CHARS_MAX:
        raise HostCallRefused(f"twilio: twiml has more than {TWIML_CHARS_MAX} characters")
    if "url" in message:
        _check_public(message["url"], "url")


def _check_public(url: str, name: str) -> None:
    try:
        check_url(url, name)
    except Invalid as error:
        raise HostCallRefused(f"twilio: {name} {error.problems[0].message}") from None


def _checked_say(say: Any) -> dict[str, str]:
    say = {"text": say} if isinstance(say, str) else say
    names = ("text", "language", "voice")
    if not isinstance(say, dict) or not say.get("text"):
        raise HostCallRefused("twilio: say must be a text, or {text, language?, voice?}")
    if not say.keys() <= set(names) or not all(isinstance(text, str) for text in say.values()):
        raise HostCallRefused("twilio: say has text, language and voice, each a string")
    if any(_NOT_IN_XML.search(text) for text in say.values()):
        raise HostCallRefused("twilio: say has a character that TwiML cannot carry")
    size = len(_AROUND) + sum(len(escape(text, {'"': "&quot;"})) for text in say.values())
    if size > TWIML_CHARS_MAX:
        raise HostCallRefused(f"twilio: say is more than {TWIML_CHARS_MAX} characters of TwiML")
    return say


async def _twiml(say: dict[str, str]) -> str:
    voice_response = await imported("twilio.twiml.voice_response")
    response = voice_response.VoiceResponse()
    response.say(say["text"], language=say.get("language"), voice=say.get("voice"))
    return str(response)


class _NoAnswer(Exception):
    """Leaves the SDK when there is nothing that it could read."""


class _Wire:
    """What the SDK takes for its HTTP client: one request, through Egress; keeps what came of it.

    Not a subclass of `twilio.http.AsyncHttpClient`: that would import the SDK with the engine, and
    the SDK asks only for these two names.
    """

    is_async = True

    def __init__(self, client: Egress, base_url: str | None, timeout_ms: int = 10_000) -> None:
        self._client = client
        self._base_url = (base_url or API).rstrip("/")
        self._timeout_ms = timeout_ms
        self.answer: Response | Retry | Refused | None = None

    async def request(
        self,
        method: str,
        url: str,
        params: Mapping[str, object] | None = None,
        data: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        auth: tuple[str, str] | None = None,
        **_options: object,
    ) -> Any:
        assert url.startswith(API + "/"), url
        assert self.answer is None, "one attempt is one request"
        assert auth is not None
        target = self._base_url + url.removeprefix(API)
        if params:
            target += "?" + urlencode({name: value for name, value in params.items() if value})
        wire = [("Authorization", _basic(*auth))]
        wire += [(name, text) for name, text in (headers or {}).items() if name != "User-Agent"]
        body = urlencode(data, doseq=True).encode() if data else None
        self.answer = await exchange(
            self._client, method, target, wire, body, timeout_ms=self._timeout_ms
        )
        if not isinstance(self.answer, Response):
            raise _NoAnswer
        text = self.answer.body.decode("utf-8", "replace")
        http = await imported("twilio.http.response")
        return http.Response(self.answer.status, text, dict(self.answer.headers))


async def _ask(
    ask: Callable[[Any], Awaitable[None]], wire: _Wire, credentials: dict[str, Any], now_ms: int
) -> Response | Retry | Refused:
    """Let the SDK make its request, then judge the answer by Twilio's codes."""
    await imported("twilio.rest.api")  # what `Client` would import late, on the loop
    rest, exceptions = await imported("twilio.rest"), await imported("twilio.base.exceptions")
    key = credentials.get("api_key_sid"), credentials.get("api_key_secret")
    user, secret = key if all(key) else (credentials["account_sid"], credentials.get("auth_token"))
    twilio = rest.Client(
        user,
        secret,
        credentials["account_sid"],
        http_client=wire,
        environment={"TWILIO_REGION": ""},  # an empty one would mean the engine's own
    )
    # The SDK trips over what is no resource of Twilio's: judged from the answer itself, below.
    with suppress(_NoAnswer, exceptions.TwilioException, ValueError, TypeError, AttributeError):
        await ask(twilio)
    answer = wire.answer
    if answer is None:
        return Refused(None, "Twilio's SDK did not send this message; look at its fields")
    return _judged(answer, credentials, now_ms) if isinstance(answer, Response) else answer


def _judged(
    response: Response, credentials: dict[str, Any], now_ms: int
) -> Response | Retry | Refused:
    if response.status < 300:  # noqa: PLR2004 - 2xx
        return response
    found = _object(response.body)
    code, text = found.get("code"), found.get("message") or found.get("title")
    if not isinstance(code, int) or not isinstance(text, str):
        answer = judged(response, now_ms, _clean(said(response), credentials).partition(": ")[2])
        is_unknown = response.status in (401, 404)
        return _disabling(answer, _PUT) if is_unknown and isinstance(answer, Refused) else answer
    meaning = ERRORS.get(code)
    error = _explained(code, _clean(text, credentials), meaning)
    if meaning is None:
        return judged(response, now_ms, error)
    if meaning.then == "retry":
        wish = retry_after_ms(response.header("retry-after"), now_ms)
        if wish is None and meaning.after_s is not None:
            wish = meaning.after_s * 1000
        return Retry(wish, response.status, error)
    return Refused(response.status, error, disables=meaning.then == "disables")


def _disabling(answer: Refused, remedy: str) -> Refused:
    error = f"{answer.error[: ERROR_CHARS_MAX - len(remedy) - 2]}; {remedy}"
    return Refused(answer.status, error, disables=True)


def _explained(code: int | str, text: str, meaning: Meaning | None) -> str:
    """Return `Twilio 21610: what it says; what to do`, with the end of it never cut off."""
    remedy = "" if meaning is None else f"; {meaning.remedy}"
    said_by_it = f"Twilio {code}: {' '.join(text.split())}"
    return said_by_it[: ERROR_CHARS_MAX - len(remedy)] + remedy


def _sent(response: Response, credentials: dict[str, Any]) -> Answer:
    resource = _object(response.body)
    sid = resource.get("sid")
    if not isinstance(sid, str) or not _SID.fullmatch(sid):
        return _unexpected(response, "a message's or a call's sid", credentials)
    if resource.get("status") in ("failed", "canceled"):
        code = resource.get("error_code") or resource["status"]
        text = str(resource.get("error_message") or "not sent")
        meaning = ERRORS.get(code) if isinstance(code, int) else None
        return Refused(response.status, _explained(code, _clean(text, credentials), meaning))
    return Sent(response.status, sid)


def _unexpected(response: Response, what: str, credentials: dict[str, Any]) -> Refused:
    # Not Retry: a 2xx means that somebody took it; again could send it, and charge it, twice.
    text = _clean(said(response), credentials)
    return Refused(response.status, f"expected {what}, got {text}"[:ERROR_CHARS_MAX])


def _late_error(status: str, told: Mapping[str, str]) -> str:
    code = told.get("ErrorCode") or told.get("SipResponseCode")
    if not code or not code.isdigit():
        return f"Twilio says {status}"
    return _explained(code, told.get("ErrorMessage") or status, ERRORS.get(int(code[:6])))


def _clean(text: str, credentials: Mapping[str, Any]) -> str:
    """Return what the other end said, without the credentials it may have said back."""
    sid, token = credentials.get("account_sid", ""), credentials.get("auth_token") or ""
    key, secret = credentials.get("api_key_sid") or "", credentials.get("api_key_secret") or ""
    for hidden in (_basic(sid, token)[6:], _basic(key, secret)[6:], token, secret, key, sid):
        if len(hidden) > len("Og=="):  # the two of nothing
            text = text.replace(hidden, "[credential]")
    return text


def _basic(user: str, secret: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{secret}".encode()).decode("ascii")


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
