"""SendGrid's v3 API: `mail/send` and `scopes`, by its reference; and its signed event webhook.

It needs the key as a bearer, JSON, a sender it knows, and a body that keeps the documented rules;
it answers 202 with X-Message-Id and no body, or 400 with `errors` that name the field.
"""

import base64
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import httpx
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.standins.provider import Asked, Case, HttpProvider, Reply

API_KEY = "SG.stand-in_Key0123456789.abcdefghijklmnopqrstuvwxyz_ABCDEFGHIJKLMNOPQ"
OTHER_KEY = "SG.revoked_Key0123456789.abcdefghijklmnopqrstuvwxyz_ABCDEFGHIJKLMNOPQ"
NO_SCOPE_KEY = "SG.reading_Key0123456789.abcdefghijklmnopqrstuvwxyz_ABCDEFGHIJKLMNOPQ"
SENDER = "alarm@example.com"
NOT_VERIFIED = (
    "The from address does not match a verified Sender Identity. Mail cannot be sent until this"
    " error is resolved. Visit https://sendgrid.com/docs/for-developers/sending-email/"
    "sender-identity/ to see the Sender Identity requirements"
)


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return what SendGrid makes when Signature Verification is turned on."""
    return ec.generate_private_key(ec.SECP256R1())


def public_text(private_key: ec.EllipticCurvePrivateKey) -> str:
    """Return the verification key as SendGrid shows it."""
    der = private_key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return base64.b64encode(der).decode()


def event(
    word: str, delivery_id: str, message_id: str = "R14554qsAGSkiKYYviJN34", **more: Any
) -> dict[str, Any]:
    """Return one event as it is posted: custom arguments stand beside SendGrid's own fields.

    `message_id`: the X-Message-Id of the answer that took the mail.
    """
    return {
        "email": "ops@example.com",
        "timestamp": 1_700_000_000,
        "smtp-id": "<14c5d75ce93.dfd.64b469@ismtpd-555>",
        "event": word,
        "sg_event_id": secrets.token_urlsafe(22),
        "sg_message_id": f"{message_id}.recvd-5f9ffdf494-9kc6l-1-673C6EB0-B.0",
        "delivery_id": delivery_id,
        **more,
    }


def signed(
    events: Sequence[Mapping[str, Any]] | bytes,
    private_key: ec.EllipticCurvePrivateKey,
    timestamp: str = "1700000000",
) -> tuple[dict[str, str], bytes]:
    """Return headers (names in lower case) and body of one post of the event webhook."""
    body = events if isinstance(events, bytes) else json.dumps(list(events)).encode() + b"\r\n"
    signature = private_key.sign(timestamp.encode() + body, ec.ECDSA(hashes.SHA256()))
    headers = {
        "content-type": "application/json",
        "user-agent": "SendGrid Event API",
        "x-twilio-email-event-webhook-signature": base64.b64encode(signature).decode(),
        "x-twilio-email-event-webhook-timestamp": timestamp,
    }
    return headers, body


def events(
    url: str, told: Sequence[Mapping[str, Any]], private_key: ec.EllipticCurvePrivateKey
) -> httpx.Response:
    """Post the events to `url`, signed, as SendGrid does."""
    headers, body = signed(told, private_key)
    with httpx.Client(trust_env=False) as client:
        return client.post(url, headers=headers, content=body)


class StandIn(HttpProvider):
    kind: ClassVar[str] = "sendgrid"
    message: ClassVar[dict[str, Any]] = {
        "to": "ops@example.com",
        "subject": "Door open",
        "text": "The door of hall 3 is open.",
    }

    def connection(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "credentials": {"api_key": API_KEY},
            "settings": {"base_url": self.url, "from": f"Hall 3 <{SENDER}>"},
        }

    def judge(self, asked: Asked) -> Reply:
        reply = self._answer(asked)
        if reply.status not in (200, 202):
            with self.lock:
                self.refused.append(reply.body.decode())
        return reply

    def _answer(self, asked: Asked) -> Reply:
        key = asked.headers.get("authorization", "")
        if key not in (f"Bearer {API_KEY}", f"Bearer {NO_SCOPE_KEY}"):
            return error(401, "The provided authorization grant is invalid, expired, or revoked")
        scopes = ["mail.send", "alerts.read"] if key == f"Bearer {API_KEY}" else ["alerts.read"]
        if (asked.method, asked.path) == ("GET", "/v3/scopes"):
            return Reply(status=200, body=json.dumps({"scopes": scopes}).encode())
        if (asked.method, asked.path) != ("POST", "/v3/mail/send"):
            return error(404, "not found")
        if "mail.send" not in scopes:
            return error(403, "access forbidden")
        if asked.headers.get("content-type") != "application/json":
            return error(415, "Content-Type should be application/json.")
        try:
            mail = json.loads(asked.body)
        except ValueError:
            return error(400, "Bad Request")
        for field, message in broken(mail):
            return error(400, message, field)
        if mail["from"]["email"] != SENDER:
            return error(403, NOT_VERIFIED, "from")
        with self.lock:
            self.accepted.append(mail)
        if mail.get("mail_settings", {}).get("sandbox_mode", {}).get("enable"):
            return Reply(status=200)  # valid, and nobody will get it
        return Reply(status=202, headers={"X-Message-Id": secrets.token_urlsafe(16)})

    def own_behaviours(self) -> Mapping[str, Callable[[Case], None]]:
        def answers(reply: Reply) -> Callable[[Case], None]:
            return lambda _case: self.then(reply)

        def changed(**fields: Any) -> Callable[[Case], None]:
            return lambda case: case.message.update(fields)

        def without(field: str) -> Callable[[Case], None]:
            return lambda case: case.message.pop(field)

        def with_key(key: str) -> Callable[[Case], None]:
            return lambda case: case.credentials.update(api_key=key)

        limited = Reply(
            status=429,
            body=error(429, "too many requests").body,
            headers={"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1700000009"},
        )
        return {
            "takes a full v3 body": _as_full,
            "takes it in sandbox mode, with 200": lambda case: case.settings.update(sandbox=True),
            "answers 200 without sandbox mode": answers(Reply(status=200, taken=True)),
            "answers 400 and names a field": changed(send_at=4_000_000_000),
            "does not know the key (401)": with_key(OTHER_KEY),
            "has no credits left (401)": answers(error(401, "Maximum credits exceeded")),
            "has not verified the sender (403)": changed(**{"from": "other@example.com"}),
            "knows a key that may not send (403)": with_key(NO_SCOPE_KEY),
            "answers 403 without a reason": answers(Reply(status=403, body=b"<html>Forbidden")),
            "answers 404": answers(error(404, "not found")),
            "answers 413": answers(error(413, "The JSON payload you have included is too large")),
            "answers 429 with `X-RateLimit-Reset`": answers(limited),
            "gets a mail without `to`": without("to"),
            "gets a mail without a subject": without("subject"),
            "gets a mail without text, html and template": without("text"),
            "gets an address twice": changed(cc="OPS@example.com"),
            "gets 1,001 recipients": changed(to=[f"a{n}@example.com" for n in range(1_001)]),
            "gets an attachment that is not base64": changed(
                attachments=[{"content": "not base64!", "filename": "a.txt"}]
            ),
            "gets a line break in the subject": changed(subject="Door\r\nBcc: all@example.com"),
            "gets a mail of more than 256 KB": changed(text="x" * (256 * 1024)),
        }


def _as_full(case: Case) -> None:
    case.message = {
        "personalizations": [
            {"to": [{"email": "ops@example.com"}], "custom_args": {"hall": "3"}},
            {"to": [{"email": "boss@example.com", "name": "Boss"}], "subject": "For you"},
        ],
        "from": {"email": SENDER, "name": "Hall 3"},
        "subject": "Door open",
        "content": [{"type": "text/plain", "value": "It is."}],
    }


def error(status: int, message: str, field: str | None = None) -> Reply:
    body = {"errors": [{"message": message, "field": field, "help": None}]}
    return Reply(
        status=status,
        body=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )


def broken(mail: Any) -> list[tuple[str, str]]:
    """Return the fields that break a rule of the reference, each with SendGrid's words for it."""
    if not isinstance(mail, dict) or not isinstance(mail.get("personalizations"), list):
        return [("personalizations", "The personalizations field is required and must be an array")]
    found = [*_people(mail), *_texts(mail)]
    for at, item in enumerate(mail.get("attachments", [])):
        try:
            base64.b64decode(item["content"], validate=True)
        except (ValueError, KeyError):
            found.append((f"attachments.{at}.content", "must be base64 encoded"))
        if not item.get("filename"):
            found.append((f"attachments.{at}.filename", "The attachment filename is required"))
    if mail.get("send_at", 0) > 1_700_000_000 + 72 * 3_600:
        found.append(("send_at", "The send_at time cannot be more than 72 hours in the future"))
    for at, holder in enumerate([mail, *mail["personalizations"]]):
        arguments = holder.get("custom_args", {})
        if not all(isinstance(value, str) for value in arguments.values()):
            found.append((f"custom_args.{at}", "The custom_args values must be strings"))
        if len(json.dumps(arguments)) > 10_000:
            found.append((f"custom_args.{at}", "custom_args may not exceed 10,000 bytes"))
    if len(mail.get("categories", [])) > 10:
        found.append(("categories", "You cannot have more than 10 categories per request"))
    return found


def _people(mail: dict[str, Any]) -> list[tuple[str, str]]:
    found = []
    total = 0
    for at, part in enumerate(mail["personalizations"]):
        if not part.get("to"):
            found.append((f"personalizations.{at}.to", "The to array is required"))
        people = [one for name in ("to", "cc", "bcc") for one in part.get(name, [])]
        emails = [one["email"].lower() for one in people]
        total += len(emails)
        found += [
            (f"personalizations.{at}", "Does not contain a valid address.")
            for email in emails
            if not email.isascii() or email.count("@") != 1
        ]
        if len(set(emails)) < len(emails):
            message = "Each email address in the personalization block should be unique"
            found.append((f"personalizations.{at}", f"{message} between to, cc, and bcc."))
    if not mail["personalizations"]:
        found.append(("personalizations", "You must have at least one personalization."))
    if total > 1_000:
        message = "There is a limit of 1000 total recipients (to + cc + bcc) per request."
        found.append(("personalizations", message))
    if not isinstance(mail.get("from"), dict) or not mail["from"].get("email"):
        found.append(("from.email", "The from email does not contain a valid address."))
    return found


def _texts(mail: dict[str, Any]) -> list[tuple[str, str]]:
    found = []
    parts = mail["personalizations"]
    if "template_id" in mail:
        return []
    if not mail.get("subject") and not all(part.get("subject") for part in parts):
        found.append(("subject", "The subject is required."))
    content = mail.get("content")
    if not content:
        found.append(("content", "Unless a valid template_id is provided, content is required."))
    for at, item in enumerate(content or []):
        if not item.get("value"):
            found.append((f"content.{at}.value", "The content value must be a string"))
    kinds = [item.get("type") for item in content or []]
    if "text/plain" in kinds[1:]:
        found.append(("content", "text/plain must be the first content type"))
    return found
