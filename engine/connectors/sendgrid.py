"""SendGrid: mail by its v3 API, built by its own SDK; and what its event webhook says later.

Path:   outbox -> here: the SDK builds the request, Egress carries it -> api.sendgrid.com
Source: twilio.com/docs/sendgrid, "Mail Send": its limitations and errors; "Rate Limits";
        "Event Webhook Reference"; "Event Webhook Security Features".
Never:  lets the SDK open a connection, wait in a thread, or try again.
"""

import asyncio
import base64
import binascii
import importlib
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal

import httpx
import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from engine.connectors.contract import (
    ERROR_CHARS_MAX,
    Answer,
    Callback,
    CallbackRefused,
    CommonSettings,
    Habits,
    Outgoing,
    Refused,
    Retry,
    Sent,
    Told,
    check_size,
    exchange,
    judged,
    said,
)
from engine.connectors.mailboxes import Mailbox, mailbox, mailboxes, one_line, together
from engine.egress import Egress, Response
from engine.errors import HostCallRefused, Invalid

HOME: Final = "https://api.sendgrid.com"  # of the EU: https://api.eu.sendgrid.com
RECIPIENTS_MAX: Final = 1_000
CATEGORIES_MAX: Final = 10
CATEGORY_CHARS_MAX: Final = 255
CUSTOM_ARGS_BYTES_MAX: Final = 10_000
TEST_MS_MAX: Final = 10_000
SIGNATURE: Final = "x-twilio-email-event-webhook-signature"
TIMESTAMP: Final = "x-twilio-email-event-webhook-timestamp"
OURS: Final = "delivery_id"  # the custom argument by which an event finds its delivery

_KEY: Final = re.compile(r"SG\.[\w.-]+", re.ASCII)
_EC_PUBLIC_KEY: Final = bytes.fromhex("06072a8648ce3d0201")  # the OID in a DER public key
_CRUMBS: Final = ("content", "disposition", "content_id", "type", "filename")
_RESERVED_HEADERS: Final = frozenset(
    {"x-sg-id", "x-sg-eid", "received", "dkim-signature", "content-type", "to", "from", "subject",
     "content-transfer-encoding", "reply-to", "cc", "bcc"}
)  # fmt: skip

_NEW_KEY: Final = "PUT the connection with a valid api_key"
_MAY_SEND: Final = "give the api_key the scope mail.send, then enable; or PUT another one"
_SENDER: Final = "verify the sender at SendGrid (Settings, Sender Authentication), then resend"

# The events that decide, by SendGrid's word; "blocked" is a bounce of that type. All others of
# _ON_ITS_WAY decide nothing, and what readers do (open, click, unsubscribe, ...) is left out.
_FINAL: Final[Mapping[str, Literal["delivered", "failed"]]] = {
    "delivered": "delivered",
    "bounce": "failed",
    "blocked": "failed",
    "dropped": "failed",
}
_ON_ITS_WAY: Final = frozenset({"processed", "deferred"})


class Person(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    email: str
    name: str | None = None


class Credentials(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    api_key: str
    webhook_public_key: str | None = None  # base64 of DER, as SendGrid shows it


class Settings(CommonSettings, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    sender: str | Person | None = msgspec.field(default=None, name="from")  # who sends by default
    sandbox: bool = False  # SendGrid checks the mail and sends nobody anything


class SendGrid:
    """Credentials `{api_key, webhook_public_key?}`; settings `{from?, sandbox?}`."""

    kind = "sendgrid"
    title = "SendGrid: mail by its v3 API"
    actions = ("send",)
    shapes = (Credentials, Settings)
    habits = Habits()

    def check(self, credentials: dict[str, Any], settings: dict[str, Any]) -> None:
        if _KEY.fullmatch(credentials["api_key"]) is None:
            raise Invalid("must be a key as SendGrid makes them: SG. ...", "/credentials/api_key")
        if credentials.get("webhook_public_key") is not None:
            _check_public_key(credentials["webhook_public_key"])
        if settings.get("from") is not None:
            try:
                mailbox(settings["from"], "from")
            except HostCallRefused as refused:
                raise Invalid(str(refused), "/settings/from") from refused

    def check_message(
        self, action: str, message: dict[str, Any], settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the v3 body; check what SendGrid refuses, and pass on what it may have added."""
        given = {name: value for name, value in message.items() if value is not None}
        body = given if "personalizations" in given else _full(given)
        sender = body.get("from", settings.get("from"))
        if sender is None:
            raise HostCallRefused(
                "sendgrid: from is required, here or in the connection's settings"
            )
        body["from"] = _person(mailbox(sender, "sendgrid: from"))
        if settings.get("sandbox"):
            mail_settings = _object(body.get("mail_settings", {}), "mail_settings")
            body["mail_settings"] = {**mail_settings, "sandbox_mode": {"enable": True}}
        _check_people(body)
        _check_texts(body)
        _check_extras(body)
        check_size(body, self.kind)
        return body

    def recipient(self, action: str, message: dict[str, Any]) -> str | None:
        people = (person for part in message["personalizations"] for person in part["to"])
        return together(person["email"] for person in people)

    async def send(self, client: Egress, outgoing: Outgoing) -> Answer:
        body = _named(outgoing.message, outgoing.delivery_id)
        response = await _ask(
            client, outgoing.credentials, outgoing.settings, body, timeout_ms=outgoing.timeout_ms
        )
        if not isinstance(response, Response):
            return response
        sandbox = body.get("mail_settings", {}).get("sandbox_mode", {}).get("enable") is True
        expected = httpx.codes.OK if sandbox else httpx.codes.ACCEPTED
        if response.status == expected:
            return Sent(response.status, response.header("x-message-id"))
        answer = _judged(response, outgoing.now_ms)
        if isinstance(answer, Response):  # somebody took it; again could send it twice
            return Refused(answer.status, f"expected HTTP {expected:d}, got {said(answer)}")
        return answer

    async def test(
        self, client: Egress, credentials: dict[str, Any], settings: dict[str, Any], *, now_ms: int
    ) -> Answer:
        response = await _ask(client, credentials, settings, None, timeout_ms=TEST_MS_MAX)
        answer = _judged(response, now_ms) if isinstance(response, Response) else response
        if not isinstance(answer, Response):
            return answer
        found = _json(answer.body)
        scopes = found.get("scopes") if isinstance(found, dict) else None
        if not isinstance(scopes, list):
            return Refused(answer.status, f"expected the key's scopes, got {said(answer)}")
        if "mail.send" not in scopes:
            return Refused(
                answer.status, f"the api_key may not send mail: {_MAY_SEND}", disables=True
            )
        return Sent(answer.status, "an api_key that may send mail (mail.send)")

    def callback(
        self, credentials: dict[str, Any], settings: dict[str, Any], callback: Callback
    ) -> list[Told]:
        """Verify a post of the signed event webhook, then read its events, oldest first.

        Not by age: SendGrid posts an event for up to 24 hours, names no window, and a post that
        is played again says what is known already.
        """
        key = credentials.get("webhook_public_key")
        if key is None:
            raise CallbackRefused(
                "the connection has no webhook_public_key: PUT it with the key of SendGrid's"
                " Settings, Mail Settings, Event Webhook, Signature Verification"
            )
        _verify(key, callback)
        events = _json(callback.body)
        if not isinstance(events, list):
            raise CallbackRefused("the body is not a list of events")
        found = [event for event in events if isinstance(event, dict)]
        return [told for event in sorted(found, key=_when) for told in _told(event)]


# What a mail is, in v3's words.


def _full(short: Mapping[str, Any]) -> dict[str, Any]:
    """Return the v3 body of {to, from, subject, text, html, ...}; unknown fields stay."""
    body = dict(short)
    part: dict[str, Any] = {}
    for name in ("to", "cc", "bcc"):
        value = body.pop(name, None)
        if value is not None and value != []:
            part[name] = [_person(found) for found in mailboxes(value, f"sendgrid: {name}")]
    if "to" not in part:
        raise HostCallRefused("sendgrid: to is required")
    if "dynamic_template_data" in body:
        part["dynamic_template_data"] = body.pop("dynamic_template_data")
    texts = [("text/plain", body.pop("text", None)), ("text/html", body.pop("html", None))]
    content = [{"type": kind, "value": text} for kind, text in texts if text is not None]
    if content:
        body["content"] = content
    if body.get("reply_to") is not None:
        body["reply_to"] = _person(mailbox(body["reply_to"], "sendgrid: reply_to"))
    return {**body, "personalizations": [part]}


def _named(body: Mapping[str, Any], delivery_id: str) -> dict[str, Any]:
    """Return the body with the argument that comes back in each event.

    Arguments of a personalization take the place of the mail's, so they get it, too.
    """
    parts = [
        {**part, "custom_args": {**part["custom_args"], OURS: delivery_id}}
        if "custom_args" in part
        else part
        for part in body["personalizations"]
    ]
    arguments = {**body.get("custom_args", {}), OURS: delivery_id}
    return {**body, "personalizations": parts, "custom_args": arguments}


def _person(found: Mailbox) -> dict[str, str]:
    return {"email": found.email} | ({"name": found.name} if found.name else {})


def _check_people(body: Mapping[str, Any]) -> None:
    parts = _objects(body["personalizations"], "personalizations")
    if not 0 < len(parts) <= RECIPIENTS_MAX:
        raise HostCallRefused(
            f"sendgrid: {len(parts)} personalizations; SendGrid takes 1 to {RECIPIENTS_MAX}"
        )
    count = 0
    for at, part in enumerate(parts):
        place = f"personalizations[{at}]"
        if not part.get("to"):
            raise HostCallRefused(f"sendgrid: {place}.to is required")
        people = [person for name in ("to", "cc", "bcc") for person in _people(part, name, place)]
        count += len(people)
        twice = [
            email for email, n in Counter(one.email.lower() for one in people).items() if n > 1
        ]
        if twice:
            raise HostCallRefused(
                f"sendgrid: {twice[0]} stands twice in to, cc and bcc; SendGrid refuses that"
            )
        _check_strings(part.get("headers", {}), f"{place}.headers")
        _check_custom_args(part.get("custom_args", {}), f"{place}.custom_args")
    if count > RECIPIENTS_MAX:
        raise HostCallRefused(
            f"sendgrid: {count} recipients in to, cc and bcc; SendGrid takes {RECIPIENTS_MAX}"
        )


def _people(part: Mapping[str, Any], name: str, place: str) -> Iterator[Mailbox]:
    for at, person in enumerate(_objects(part.get(name, []), f"{place}.{name}")):
        found = mailbox(person, f"sendgrid: {place}.{name}[{at}]")
        if found.name and re.search("[;,]", found.name):
            raise HostCallRefused(
                f"sendgrid: {place}.{name}[{at}].name has a comma or a semicolon, which"
                " SendGrid does not take"
            )
        yield found


def _check_texts(body: Mapping[str, Any]) -> None:
    template, parts = body.get("template_id"), body["personalizations"]
    if template is not None and (not isinstance(template, str) or not template):
        raise HostCallRefused("sendgrid: template_id must be a string, not empty")
    for holder in (body, *parts):
        if "subject" in holder and not one_line(holder["subject"], "sendgrid: subject"):
            raise HostCallRefused("sendgrid: subject must not be empty")
        if "dynamic_template_data" in holder:
            _object(holder["dynamic_template_data"], "dynamic_template_data")
            if template is None:
                raise HostCallRefused("sendgrid: dynamic_template_data needs a template_id")
    _check_content(body)
    if template is not None:
        return
    if "subject" not in body and not all("subject" in part for part in parts):
        raise HostCallRefused("sendgrid: subject is required, unless a template_id brings it")
    if not body.get("content"):
        raise HostCallRefused("sendgrid: text or html is required, unless a template_id brings it")


def _check_content(body: Mapping[str, Any]) -> None:
    for at, item in enumerate(_objects(body.get("content", []), "content")):
        for name in ("type", "value"):
            if not isinstance(item.get(name), str) or not item[name]:
                raise HostCallRefused(f"sendgrid: content[{at}].{name} must be a string, not empty")


def _check_extras(body: Mapping[str, Any]) -> None:
    for at, item in enumerate(_objects(body.get("attachments", []), "attachments")):
        _check_attachment(item, f"attachments[{at}]")
    categories = body.get("categories", [])
    if not isinstance(categories, list) or not all(isinstance(one, str) for one in categories):
        raise HostCallRefused("sendgrid: categories must be a list of strings")
    if len(categories) > CATEGORIES_MAX or len(set(categories)) < len(categories):
        raise HostCallRefused(f"sendgrid: categories must be at most {CATEGORIES_MAX}, each once")
    if any(len(one) > CATEGORY_CHARS_MAX for one in categories):
        raise HostCallRefused(f"sendgrid: a category has more than {CATEGORY_CHARS_MAX} characters")
    _check_strings(body.get("headers", {}), "headers")
    _check_custom_args(body.get("custom_args", {}), "custom_args")
    send_at = body.get("send_at")
    if send_at is not None and (not isinstance(send_at, int) or isinstance(send_at, bool)):
        raise HostCallRefused("sendgrid: send_at must be whole seconds since 1970")
    if body.get("reply_to") is not None:
        mailbox(body["reply_to"], "sendgrid: reply_to")
        if body.get("reply_to_list") is not None:
            raise HostCallRefused("sendgrid: give reply_to or reply_to_list, not both")
    mail_settings = _object(body.get("mail_settings", {}), "mail_settings")
    _object(mail_settings.get("sandbox_mode", {}), "mail_settings.sandbox_mode")


def _check_attachment(item: Mapping[str, Any], place: str) -> None:
    for name in _CRUMBS:
        if name in item:
            one_line(item[name], f"sendgrid: {place}.{name}")
    if not item.get("content") or not item.get("filename"):
        raise HostCallRefused(f"sendgrid: {place} needs content (base64) and filename")
    try:
        base64.b64decode(item["content"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise HostCallRefused(f"sendgrid: {place}.content is not base64: {error}") from error
    if item.get("disposition", "attachment") not in ("attachment", "inline"):
        raise HostCallRefused(f"sendgrid: {place}.disposition must be attachment or inline")


def _check_strings(value: Any, what: str) -> None:
    for name, text in _object(value, what).items():
        one_line(name, f"sendgrid: {what}")
        one_line(text, f"sendgrid: {what}.{name}")
        if what.endswith("headers") and name.lower() in _RESERVED_HEADERS:
            raise HostCallRefused(f"sendgrid: {what}.{name} is SendGrid's own and cannot be set")


def _check_custom_args(value: Any, what: str) -> None:
    for name, text in _object(value, what).items():
        if not isinstance(text, str):
            raise HostCallRefused(f"sendgrid: {what}.{name} must be a string")
    if OURS in value:
        raise HostCallRefused(f"sendgrid: {what}.{OURS} is set by the engine")
    used = len(msgspec.json.encode(value))
    if used > CUSTOM_ARGS_BYTES_MAX - 100:  # ours is among them
        raise HostCallRefused(
            f"sendgrid: {what} has {used} bytes; SendGrid takes {CUSTOM_ARGS_BYTES_MAX}"
        )


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise HostCallRefused(f"sendgrid: {what} must be an object")
    return value


def _objects(value: Any, what: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise HostCallRefused(f"sendgrid: {what} must be a list of objects")
    return value


# One request, and what its answer means.


class _Built(Exception):
    """The SDK has built its request, and would now open a connection."""

    def __init__(self, request: Any) -> None:
        self.request = request
        super().__init__()


async def _ask(
    client: Egress,
    credentials: Mapping[str, Any],
    settings: Mapping[str, Any],
    body: dict[str, Any] | None,
    *,
    timeout_ms: int,
) -> Response | Retry | Refused:
    """Post a mail, or ask for the key's scopes (body None)."""
    home = (settings.get("base_url") or HOME).rstrip("/")
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            # In a thread: the SDK takes 0.1 s and 8 MB to load, and works synchronously. Only to
            # build the request: a thread that waited for the answer is one that the engine lacks.
            request = await asyncio.to_thread(_request, credentials["api_key"], home, body)
            headers = [item for item in request.header_items() if item[0].lower() != "user-agent"]
            return await exchange(
                client,
                request.get_method(),
                request.full_url,
                headers,
                request.data,
                timeout_ms=timeout_ms,
            )
    except TimeoutError:
        return Retry(None, None, f"{httpx.URL(home).host} did not answer within {timeout_ms} ms")


def _request(api_key: str, home: str, body: dict[str, Any] | None) -> Any:
    """Return the SDK's own request (of urllib): its URL, headers and body."""
    # It logs every header of a request, the key among them.
    logging.getLogger("python_http_client.client").setLevel(logging.WARNING)
    sdk = importlib.import_module("sendgrid").SendGridAPIClient(api_key, host=home)
    resource = sdk.client.scopes if body is None else sdk.client.mail.send
    resource._make_request = _keep  # noqa: SLF001 - there it opens connections; it has no other seam
    try:
        resource.get() if body is None else resource.post(request_body=body)
    except _Built as built:
        return built.request
    raise AssertionError("the SDK has made a request by itself")


def _keep(_opener: object, request: Any, **_: object) -> None:
    raise _Built(request)


def _judged(response: Response, now_ms: int) -> Response | Retry | Refused:
    """Return a 2xx response, or what SendGrid means: where nothing is said here, by its status.

    | 400 413 | the mail is wrong, or too large            | failed
    | 401     | the key is unknown, or was revoked         | failed, disables
    | 401     | "maximum credits exceeded": they come back | later
    | 403     | the sender is not verified                 | failed
    | 403     | the key has no mail.send                   | failed, disables
    | 403     | without a reason: SendGrid's edge, not it  | later
    | 429     | too many requests                          | at X-RateLimit-Reset
    | 5xx     | SendGrid is broken                         | later
    """
    status, text = response.status, _errors(response)
    answer = judged(response, now_ms, text)
    if isinstance(answer, Response):
        return answer
    error, words = answer.error, (text or "").lower()
    if status == httpx.codes.UNAUTHORIZED:
        if "credits" in words:
            return Retry(None, status, error)
        return Refused(status, _with(error, _NEW_KEY), disables=True)
    if status == httpx.codes.FORBIDDEN:
        if text is None:
            return Retry(None, status, error)
        if "sender" in words:
            return Refused(status, _with(error, _SENDER))
        return Refused(status, _with(error, _MAY_SEND), disables=True)
    if status == httpx.codes.TOO_MANY_REQUESTS and isinstance(answer, Retry):
        wait_ms = answer.after_ms
        return Retry(_reset_ms(response, now_ms) if wait_ms is None else wait_ms, status, error)
    return answer


def _with(error: str, remedy: str) -> str:
    return f"{error[: ERROR_CHARS_MAX - len(remedy) - 3]} - {remedy}"


def _errors(response: Response) -> str | None:
    """Return the text of {"errors": [{"message", "field"}]}; None: it is something else."""
    found = _json(response.body)
    errors = found.get("errors") if isinstance(found, dict) else None
    if not isinstance(errors, list):
        return None
    texts = []
    for error in errors:
        if isinstance(error, dict) and isinstance(error.get("message"), str):
            field = error.get("field")
            texts.append(f"{field}: {error['message']}" if field else error["message"])
    return "; ".join(texts) or None


def _reset_ms(response: Response, now_ms: int) -> int | None:
    """Return X-RateLimit-Reset, in seconds since 1970, as ms from now."""
    text = (response.header("x-ratelimit-reset") or "").strip()
    if not (text.isascii() and text.isdigit()):
        return None
    return max(0, int(text[:12]) * 1000 - now_ms)


def _json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None


# The event webhook.


def _check_public_key(key: str) -> None:
    try:
        der = base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        der = b""
    if _EC_PUBLIC_KEY not in der[:32]:
        raise Invalid(
            "must be the verification key as SendGrid shows it: base64, without lines around it",
            "/credentials/webhook_public_key",
        )


def _verify(key: str, callback: Callback) -> None:
    """Raise CallbackRefused unless SendGrid signed the timestamp and these very bytes."""
    signature, timestamp = callback.headers.get(SIGNATURE), callback.headers.get(TIMESTAMP)
    if not signature or not timestamp:
        raise CallbackRefused(
            "it is not signed: turn on Signature Verification of SendGrid's Event Webhook"
        )
    webhook = importlib.import_module("sendgrid.helpers.eventwebhook").EventWebhook
    try:
        text = callback.body.decode("utf-8")
        good = webhook(key).verify_signature(text, signature, timestamp)
    except (ValueError, InvalidSignature, UnsupportedAlgorithm) as error:
        # The key, its curve, the base64 or the UTF-8 is none.
        raise CallbackRefused(f"the signature cannot be checked: {error}") from error
    if not good:
        raise CallbackRefused("the signature is not of the connection's webhook_public_key")


def _when(event: Mapping[str, Any]) -> int:
    at = event.get("timestamp")
    return at if isinstance(at, int) else 0


def _told(event: Mapping[str, Any]) -> Iterable[Told]:
    """Return what one event says of a delivery of ours: nothing, or one thing."""
    word, delivery_id = event.get("event"), event.get(OURS)
    if word == "bounce" and event.get("type") == "blocked":
        word = "blocked"
    if not isinstance(word, str) or not isinstance(delivery_id, str):
        return ()
    final = _FINAL.get(word)
    if final is None and word not in _ON_ITS_WAY:
        return ()
    message_id = event.get("sg_message_id")
    return (
        Told(
            delivery_id=delivery_id,
            status=word,
            final=final,
            error=_why(word, event) if final == "failed" else None,
            # X-Message-Id is what stands before the first dot of it.
            message_id=message_id.partition(".")[0] if isinstance(message_id, str) else None,
        ),
    )


def _why(word: str, event: Mapping[str, Any]) -> str:
    parts = [word, event.get("email"), event.get("status"), event.get("reason")]
    return ": ".join(part for part in parts if isinstance(part, str) and part)[:ERROR_CHARS_MAX]
