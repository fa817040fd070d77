"""Mail, by SMTP: any server, Amazon SES, Gmail.

Source: RFC 5321 (replies, 4.2.1 and 4.5.4), 5322 and 2047 (headers), 6531 (SMTPUTF8), 3207, 4954;
        docs.aws.amazon.com/ses, "Obtaining Amazon SES SMTP credentials"; support.google.com,
        "Gmail SMTP errors and codes".
Path:   check_message -> stored -> _letter -> _attempt (a socket of Egress, aiosmtplib on it)
Never:  logs in without TLS, or over TLS to a server whose certificate does not name it.
"""

import asyncio
import base64
import binascii
import hmac
import re
import socket
import ssl
import unicodedata
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.header import Header
from email.message import EmailMessage
from email.policy import SMTP as SMTP_LINES
from email.utils import format_datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias

import httpx
import msgspec
from msgspec import Meta

from engine.connectors.contract import (
    ERROR_CHARS_MAX,
    SEND_MS_MAX,
    Answer,
    CommonSettings,
    Habits,
    Outgoing,
    Refused,
    Retry,
    Sent,
    check_size,
    imported,
)
from engine.connectors.mailboxes import together
from engine.egress import Egress, EgressFailed, EgressRefused
from engine.errors import HostCallRefused, Invalid, explained

if TYPE_CHECKING:
    from aiosmtplib import SMTP, SMTPException

RECIPIENTS_MAX: Final = 100  # every server takes as many: RFC 5321, 4.5.3.1.8. SES takes 50
SUBJECT_CHARS_MAX: Final = 900
NAME_CHARS_MAX: Final = 200
HEADERS_MAX: Final = 50
HEADER_CHARS_MAX: Final = 900  # a line has at most 998: RFC 5322, 2.1.1
LOCAL_BYTES_MAX: Final = 64
DOMAIN_CHARS_MAX: Final = 253
PATIENT_ATTEMPTS: Final = 4  # in which nobody gets it while one may get it later: 13 minutes
QUIT_MS: Final = 500  # a farewell, after the answer is known

PORTS: Final = {"starttls": 587, "tls": 465, "none": 25}
_HOST: Final = re.compile(r"[A-Za-z0-9._:-]{1,253}")
_REGION: Final = re.compile(r"[a-z]{2}(-[a-z]+)+-[0-9]{1,2}")
_ATOMS: Final = r"[^\s\"(),:;<>@\[\\\].\x00-\x1f\x7f]+"
_LOCAL: Final = re.compile(rf"{_ATOMS}(?:\.{_ATOMS})*")
_DOMAIN: Final = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(?:\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
_FIELD_NAME: Final = re.compile(r"[!-9;-~]{1,76}")
_TYPE: Final = re.compile(r"(?!multipart/|message/)[\w.+-]{1,60}/[\w.+-]{1,60}", re.ASCII)
_PLAIN_CHARS_MAX: Final = 70  # longer ones are folded
_UNPRINTABLE: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})  # what some reader takes for a line's end
_OURS: Final = frozenset(  # headers that are made here
    {"from", "to", "cc", "bcc", "sender", "reply-to", "subject", "date", "message-id"}
    # or by the servers on the way
    | {"return-path", "received", "dkim-signature", "authentication-results", "mime-version"}
)

Meaning: TypeAlias = int | Literal["disables"]
"""How many ms to wait, or that nothing at all can be sent until somebody looks after it."""

_REMEDY: Final = "PUT the connection with valid credentials"
_HOUR_MS: Final = 3_600_000
# (when, code, in the text) -> what it means; the first that fits. None: any.
# Else the first digit says it: 4, not now; 5, never (RFC 5321, 4.2.1).
ERRORS: Final[tuple[tuple[str | None, int | None, str, Meaning], ...]] = (
    (None, None, " 5.4.5 ", _HOUR_MS),  # Gmail: "Daily user sending limit exceeded", with 550
    (None, 454, "daily message quota", _HOUR_MS),  # SES; its "maximum sending rate" is a plain 454
    ("login", 534, "", "disables"),  # Gmail: an application-specific password is required
    ("login", 535, "", "disables"),  # the credentials are wrong: RFC 4954, 6
    ("login", 530, "", "disables"),
    ("login", 538, "", "disables"),  # wants encryption for this
    (None, 530, "", "disables"),  # it wants a login, and there are no credentials
)


class Ses(msgspec.Struct, forbid_unknown_fields=True):
    access_key_id: str
    secret_access_key: str  # of an IAM user who may ses:SendRawEmail; never sent itself
    region: str


class Gmail(msgspec.Struct, forbid_unknown_fields=True):
    user: str
    app_password: str


class Credentials(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    username: str | None = None
    password: str | None = None
    ses: Ses | None = None
    gmail: Gmail | None = None


class Settings(CommonSettings, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    host: str | None = None  # needed unless the credentials are those of SES or Gmail
    port: Annotated[int, Meta(ge=1, le=65_535)] | None = None  # by default PORTS[security]
    security: Literal["starttls", "tls", "none"] = "starttls"
    sender: str | None = msgspec.field(default=None, name="from")
    reply_to: str | None = None
    ca_pem: str | None = None  # the only authorities to trust, for a server with a private one


class Attachment(msgspec.Struct, forbid_unknown_fields=True):
    filename: str
    content: str  # base64
    type: str = "application/octet-stream"


class Message(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    to: str | list[str]
    cc: str | list[str] = []
    bcc: str | list[str] = []
    sender: str | None = msgspec.field(default=None, name="from")
    reply_to: str | None = None
    subject: str
    text: str | None = None
    html: str | None = None
    attachments: list[Attachment] = []
    headers: dict[str, str] = {}


class Mail:
    """Credentials `{username?, password?}`, `{ses}` or `{gmail}`; settings: the server."""

    kind = "mail"
    title = "Mail: any SMTP server, Amazon SES, Gmail"
    actions = ("send",)
    shapes = (Credentials, Settings)
    # Greylisting servers want minutes; a mail queue that gives up earlier loses mail (4.5.4.1).
    habits = Habits(waits_s=(5, 30, 120, 600, 1_800, 3_600, 7_200, 14_400, 28_800))

    def check(self, credentials: dict[str, Any], settings: dict[str, Any]) -> None:
        if settings.get("base_url") is not None:
            raise Invalid("mail goes by SMTP: set host and port", "/settings/base_url")
        given = _check_credentials(credentials)
        if given and settings.get("security") == "none":
            raise Invalid("credentials need starttls or tls", "/settings/security")
        if settings.get("host") is None and not given & {"ses", "gmail"}:
            raise Invalid("is required", "/settings/host")
        if settings.get("host") is not None and not _HOST.fullmatch(settings["host"]):
            raise Invalid("must be a host name or an address", "/settings/host")
        for name in ("from", "reply_to"):
            if settings.get(name) is not None:
                _mailbox(settings[name], _invalid(f"/settings/{name}"))
        if settings.get("ca_pem") is not None:
            try:
                ssl.create_default_context(cadata=settings["ca_pem"])
            except (ssl.SSLError, TypeError, ValueError):  # TypeError: it is not ASCII
                raise Invalid("must be certificates in PEM", "/settings/ca_pem") from None

    def check_message(
        self, action: str, message: dict[str, Any], settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Check everything, unknown fields too: what is not known here would not be sent."""
        check_size(message, self.kind)
        given = {name: value for name, value in message.items() if value is not None}
        for name in ("from", "reply_to"):
            if settings.get(name) is not None:
                given.setdefault(name, settings[name])
        checked = _message(given)
        if checked.sender is None:
            raise HostCallRefused("mail: from is required, here or in the settings")
        _check_mailboxes(checked)
        _check_line(checked.subject, "subject", SUBJECT_CHARS_MAX)
        if checked.text is None and checked.html is None:
            raise HostCallRefused("mail: text or html is required")
        if "\x00" in f"{checked.text}{checked.html}":
            raise HostCallRefused("mail: text and html may have no NUL: RFC 5321, 4.1.1.4")
        _check_attachments(checked.attachments)
        _check_headers(checked.headers)
        return given

    def recipient(self, action: str, message: dict[str, Any]) -> str | None:
        return together(_mailbox(one, _wrong("to")).address for one in _listed(message["to"]))

    async def send(self, client: Egress, outgoing: Outgoing) -> Answer:
        server = _server(outgoing.credentials, outgoing.settings)
        letter = await asyncio.to_thread(
            _letter, _message(outgoing.message), outgoing.delivery_id, outgoing.now_ms
        )
        return await _attempt(
            client,
            server,
            lambda smtp: _deliver(smtp, letter, server, all_or_none=_may_wait(outgoing)),
            outgoing.timeout_ms,
        )

    async def test(
        self, client: Egress, credentials: dict[str, Any], settings: dict[str, Any], *, now_ms: int
    ) -> Answer:
        """Connect, log in, and do nothing."""
        server = _server(credentials, settings)
        return await _attempt(client, server, lambda smtp: _greet(smtp, server), SEND_MS_MAX)


# ---------------------------------------------------------------- the connection


@dataclass(frozen=True, slots=True, kw_only=True)
class _Server:
    host: str
    port: int
    security: str
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)  # what no error may say
    ca_pem: str | None = None


def _server(credentials: dict[str, Any], settings: dict[str, Any]) -> _Server:
    security = settings.get("security", "starttls")
    host, username, password = None, credentials.get("username"), credentials.get("password")
    secrets = [username, password]
    if credentials.get("ses") is not None:
        ses = credentials["ses"]
        host, username = f"email-smtp.{ses['region']}.amazonaws.com", ses["access_key_id"]
        password = ses_password(ses["secret_access_key"], ses["region"])
        secrets += [username, password, ses["secret_access_key"]]
    if credentials.get("gmail") is not None:
        gmail = credentials["gmail"]
        host, username = "smtp.gmail.com", gmail["user"]
        password = "".join(gmail["app_password"].split())  # Google shows it in groups of four
        secrets += [username, password, gmail["app_password"]]
    return _Server(
        host=settings.get("host") or host or "",
        port=settings.get("port") or PORTS[security],
        security=security,
        username=username,
        password=password,
        secrets=tuple(secret for secret in secrets if secret),
        ca_pem=settings.get("ca_pem"),
    )


def ses_password(secret_access_key: str, region: str) -> str:
    """Return the SMTP password that belongs to an IAM user's key, as AWS documents it."""
    signature = f"AWS4{secret_access_key}".encode()
    for part in ("11111111", region, "ses", "aws4_request", "SendRawEmail"):
        signature = hmac.digest(signature, part.encode(), "sha256")
    return base64.b64encode(b"\x04" + signature).decode("ascii")


def _check_credentials(credentials: dict[str, Any]) -> set[str]:
    given = {name for name, value in credentials.items() if value is not None}
    if given not in (set(), {"username", "password"}, {"ses"}, {"gmail"}):
        raise Invalid("give username and password, or ses, or gmail", "/credentials")
    if "ses" in given and not _REGION.fullmatch(credentials["ses"]["region"]):
        raise Invalid("must be a region, as eu-central-1", "/credentials/ses/region")
    texts = {f"/credentials/{name}": credentials[name] for name in given - {"ses", "gmail"}}
    for kind in given & {"ses", "gmail"}:
        texts |= {f"/credentials/{kind}/{name}": text for name, text in credentials[kind].items()}
    for pointer, text in texts.items():
        if not text or any(unicodedata.category(char) in _UNPRINTABLE for char in text):
            raise Invalid("must be a text without control characters", pointer)
    return given


# ---------------------------------------------------------------- the message


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mailbox:
    name: str
    local: str
    domain: str  # in ASCII

    @property
    def address(self) -> str:
        return f"{self.local}@{self.domain}"

    def line(self) -> str:
        """Return it as it stands in a header; a long name is folded."""
        if not self.name:
            return self.address
        plain = self.name.isascii() and len(self.name) <= _PLAIN_CHARS_MAX and "=?" not in self.name
        quoted = '"' + re.sub(r'([\\"])', r"\\\1", self.name) + '"'
        return f"{quoted if plain else _encoded(self.name)} <{self.address}>"


Complain: TypeAlias = Callable[[str], Exception]


def _invalid(pointer: str) -> Complain:
    return lambda why: Invalid(why, pointer)


def _wrong(name: str) -> Complain:
    return lambda why: HostCallRefused(f"mail: {name} {why}")


def _mailbox(text: str, complain: Complain) -> _Mailbox:
    """Read `a@b` or `Name <a@b>`."""
    if any(unicodedata.category(char) in _UNPRINTABLE for char in text):
        raise complain("has a line break or a control character")
    name, address = "", text.strip()
    if address.endswith(">"):
        name, _, address = (part.strip() for part in address[:-1].rpartition("<"))
    if len(name) > 1 and name[0] == name[-1] == '"':
        name = re.sub(r"\\(.)", r"\1", name[1:-1])
    local, at, domain = address.rpartition("@")
    if not domain.isascii():
        with suppress(httpx.InvalidURL):
            domain = httpx.URL(scheme="http", host=domain).raw_host.decode("ascii")
    if not at or not _LOCAL.fullmatch(local) or not _DOMAIN.fullmatch(domain):
        raise complain("must be an address, `ada@example.com` or `Ada <ada@example.com>`")
    if len(local.encode()) > LOCAL_BYTES_MAX or len(domain) > DOMAIN_CHARS_MAX:
        raise complain("is too long for an address")
    if len(name) > NAME_CHARS_MAX:
        raise complain(f"has a name of more than {NAME_CHARS_MAX} characters")
    return _Mailbox(name=name, local=local, domain=domain.lower())


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _message(given: Mapping[str, Any]) -> Message:
    try:
        return msgspec.convert(given, type=Message)
    except msgspec.ValidationError as error:
        why, place = explained(error)
        if why.startswith("Object contains unknown field"):
            why = f"{why}; known: {', '.join(Message.__struct_encode_fields__)}"
        raise HostCallRefused(f"mail: {place.strip('/')}: {why}") from None


def _check_mailboxes(message: Message) -> None:
    count = 0
    for name in ("to", "cc", "bcc"):
        for one in _listed(getattr(message, name)):
            _mailbox(one, _wrong(name))
            count += 1
    if not _listed(message.to):
        raise HostCallRefused("mail: to names nobody")
    if count > RECIPIENTS_MAX:
        raise HostCallRefused(f"mail: {count} recipients; one message goes to {RECIPIENTS_MAX}")
    _mailbox(message.sender or "", _wrong("from"))
    if message.reply_to is not None:
        _mailbox(message.reply_to, _wrong("reply_to"))


def _check_line(text: str, name: str, chars_max: int) -> None:
    if any(unicodedata.category(char) in _UNPRINTABLE for char in text):
        raise HostCallRefused(f"mail: {name} has a line break or a control character")
    if len(text) > chars_max:
        raise HostCallRefused(f"mail: {name} has more than {chars_max} characters")


def _check_attachments(attachments: list[Attachment]) -> None:
    for at, one in enumerate(attachments):
        _check_line(one.filename, f"attachments/{at}/filename", NAME_CHARS_MAX)
        if not one.filename:
            raise HostCallRefused(f"mail: attachments/{at}/filename is empty")
        if not _TYPE.fullmatch(one.type):
            raise HostCallRefused(f"mail: attachments/{at}/type must be one as image/png")
        try:
            _content(one)
        except (binascii.Error, ValueError):
            raise HostCallRefused(f"mail: attachments/{at}/content is not base64") from None


def _check_headers(headers: dict[str, str]) -> None:
    if len(headers) > HEADERS_MAX:
        raise HostCallRefused(f"mail: {len(headers)} headers; the limit is {HEADERS_MAX}")
    for name, value in headers.items():
        if not _FIELD_NAME.fullmatch(name):
            raise HostCallRefused(f"mail: headers: {name!r} is not a header's name")
        if name.lower() in _OURS or name.lower().startswith(("content-", "resent-")):
            raise HostCallRefused(f"mail: headers: {name} is made from the fields of the message")
        _check_line(value, f"headers/{name}", HEADER_CHARS_MAX)
        if not value.isascii():
            raise HostCallRefused(f"mail: headers/{name} must be ASCII")


def _content(attachment: Attachment) -> bytes:
    return base64.b64decode(re.sub(r"[\r\n]", "", attachment.content), validate=True)


# ---------------------------------------------------------------- the letter


@dataclass(frozen=True, slots=True, kw_only=True)
class _Letter:
    """What goes out: the envelope and the bytes."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes = field(repr=False)
    message_id: str
    utf8: bool  # an address has letters other than ASCII before its @


def _letter(message: Message, delivery_id: str, now_ms: int) -> _Letter:
    """Write the letter; its Message-ID is the delivery's, in every attempt."""
    sender = _mailbox(message.sender or "", _wrong("from"))
    to, cc, bcc = (
        [_mailbox(one, _wrong("to")) for one in _listed(listed)]
        for listed in (message.to, message.cc, message.bcc)
    )
    reply_to = [] if message.reply_to is None else [_mailbox(message.reply_to, _wrong("reply_to"))]
    message_id = f"<{delivery_id}@{sender.domain}>"
    lines = {
        "Date": format_datetime(datetime.fromtimestamp(now_ms // 1000, UTC)),
        "Message-ID": message_id,
        "From": sender.line(),
        "To": ",\r\n ".join(one.line() for one in to),
        "Cc": ",\r\n ".join(one.line() for one in cc),
        "Reply-To": "".join(one.line() for one in reply_to),
        "Subject": _subject(message.subject),
    }
    if "auto-submitted" not in {name.lower() for name in message.headers}:
        lines["Auto-Submitted"] = "auto-generated"  # no "I am on holiday" in return: RFC 3834
    lines |= message.headers
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
    everybody = [*to, *cc, *bcc]
    return _Letter(
        sender=sender.address,
        recipients=tuple(dict.fromkeys(one.address for one in everybody)),
        content=head.encode() + _body(message),
        message_id=message_id,
        utf8=not all(one.local.isascii() for one in (sender, *everybody, *reply_to)),
    )


def _body(message: Message) -> bytes:
    # The headers above are not left to EmailMessage: when it folds a name it loses the quotes
    # around a comma, so that one address becomes two; and it encodes long ids and URLs.
    body = EmailMessage(SMTP_LINES.clone(cte_type="7bit"))
    if message.text is not None:
        body.set_content(message.text)
        if message.html is not None:
            body.add_alternative(message.html, subtype="html")
    else:
        body.set_content(message.html or "", subtype="html")
    for one in message.attachments:
        maintype, _, subtype = one.type.partition("/")
        body.add_attachment(
            _content(one), maintype=maintype, subtype=subtype, filename=one.filename
        )
    return body.as_bytes()


def _subject(text: str) -> str:
    plain = text.isascii() and len(text) <= _PLAIN_CHARS_MAX and "=?" not in text
    return text if plain else _encoded(text)


def _encoded(text: str) -> str:
    """Return RFC 2047's encoded words, folded."""
    return Header(text, "utf-8", maxlinelen=75, header_name="Reply-To").encode(linesep="\r\n")


# ---------------------------------------------------------------- the attempt


class _Unfit(Exception):
    """The server cannot do what the connection asks for."""

    def __init__(self, why: str, *, disables: bool) -> None:
        self.disables = disables
        super().__init__(why)


async def _attempt(
    client: Egress, server: _Server, use: "Callable[[SMTP], Awaitable[Answer]]", timeout_ms: int
) -> Answer:
    """Connect once, log in once, and `use` the connection."""
    await imported("aiosmtplib")  # a fifth of a second, once: not of the attempt's time
    from aiosmtplib import SMTP, SMTPException

    trusted = await asyncio.to_thread(_trusted, server.ca_pem)
    ends = asyncio.get_running_loop().time() + timeout_ms / 1000
    smtp: SMTP | None = None
    opened: socket.socket | None = None
    try:
        async with asyncio.timeout_at(ends):
            opened = await client.open_socket(server.host, server.port, timeout_ms=timeout_ms)
            smtp = SMTP(
                hostname=server.host,
                sock=opened,
                local_hostname=_literal(opened),
                use_tls=server.security == "tls",
                start_tls=False,
                tls_context=trusted,
                timeout=None,  # the whole attempt's, above
            )
            await smtp.connect()
            await _prepare(smtp, server)
            return await use(smtp)
    except EgressRefused as error:
        return Refused(None, str(error))
    except EgressFailed as error:
        return Retry(None, None, str(error))
    except _Unfit as error:
        return Refused(None, f"{server.host} {error}", error.disables)
    except TimeoutError:
        return Retry(None, None, f"{server.host} did not answer within {timeout_ms} ms")
    except SMTPException as error:
        return _meant(error, server)
    except OSError as error:  # of TLS too
        return Retry(None, None, _said(server, f"no connection: {error}"))
    finally:
        if smtp is not None:
            await _quit(smtp, ends)
        if opened is not None:
            with suppress(OSError):  # closed already
                opened.shutdown(socket.SHUT_RDWR)  # TLS would wait 30 s for a silent server's bye


async def _prepare(smtp: "SMTP", server: _Server) -> None:
    if server.security == "starttls":
        await smtp.ehlo()
        if not smtp.supports_extension("starttls"):
            raise _Unfit("offers no STARTTLS: set the right port, or security: tls", disables=True)
        await smtp.starttls()
    if server.username is None or server.password is None:
        return
    await smtp.ehlo()
    # One of them, once: every login that fails brings the account nearer to being locked.
    logins = {
        "plain": smtp.auth_plain,
        "login": smtp.auth_login,
        "cram-md5": smtp.auth_crammd5,
    }
    for name, login in logins.items():
        if name in smtp.server_auth_methods:
            await login(server.username.encode(), server.password.encode())
            return
    raise _Unfit(f"offers none of the logins {', '.join(logins)}", disables=True)


async def _greet(smtp: "SMTP", server: _Server) -> Answer:
    response = await smtp.noop()
    return Sent(response.code, f"{server.host}:{server.port}")


def _may_wait(outgoing: Outgoing) -> bool:
    """Tell whether another attempt comes that may find everybody, before some get it alone."""
    retries = outgoing.settings.get("retries") or {}
    waits = retries.get("waits_s") or Mail.habits.waits_s
    last = min(PATIENT_ATTEMPTS + 1, retries.get("max_attempts") or Mail.habits.attempts)
    next_s = sum([*waits, *[waits[-1]] * PATIENT_ATTEMPTS][: outgoing.attempt]) * 2  # they vary
    return outgoing.attempt < last and next_s < (retries.get("max_age_s") or Mail.habits.max_age_s)


async def _deliver(smtp: "SMTP", letter: _Letter, server: _Server, *, all_or_none: bool) -> Answer:
    """Hand the letter over, once, for all recipients that the server takes.

    `all_or_none`: for none while the server says of one that it may take it later.
    """
    from aiosmtplib import (
        SMTPDataError,
        SMTPException,
        SMTPHeloError,
        SMTPRecipientRefused,
        SMTPRecipientsRefused,
        SMTPServerDisconnected,
    )

    if smtp.is_ehlo_or_helo_needed:
        with suppress(SMTPHeloError):  # a server of before 1995: `mail` will say HELO
            await smtp.ehlo()
    options = [f"SIZE={len(letter.content)}"] if smtp.supports_extension("size") else []
    if letter.utf8:
        if not smtp.supports_extension("smtputf8"):
            raise _Unfit("takes no addresses with letters other than ASCII", disables=False)
        options += ["SMTPUTF8", "BODY=8BITMIME"]
    encoding = "utf-8" if letter.utf8 else "ascii"
    await smtp.mail(letter.sender, options=options, encoding=encoding)
    refused: list[SMTPRecipientRefused] = []
    for recipient in letter.recipients:
        try:
            await smtp.rcpt(recipient, encoding=encoding)
        except SMTPRecipientRefused as error:
            refused.append(error)
    not_now = any(one.code in range(400, 500) for one in refused)
    if len(refused) == len(letter.recipients) or (not_now and all_or_none):
        with suppress(SMTPException):
            await smtp.rset()
        raise SMTPRecipientsRefused(refused)
    try:
        code = (await smtp.data(letter.content)).code
    except SMTPDataError as error:
        if error.code not in range(200, 300):
            raise
        code = error.code
    except SMTPServerDisconnected:
        return Retry(None, None, "the connection closed after DATA: it may have been taken")
    # Sent, whoever was refused: again would be twice for those who were not.
    note = "; ".join(f"{one.recipient}: {one.code} {one.message}" for one in refused)
    note = _said(server, f"not taken for {note}")
    return Sent(code, letter.message_id, note if refused else None)


async def _quit(smtp: "SMTP", ends: float) -> None:
    """Say QUIT while there is time; what becomes of it changes nothing."""
    from aiosmtplib import SMTPException

    now = asyncio.get_running_loop().time()
    with suppress(SMTPException, OSError):  # TimeoutError is one
        if smtp.is_connected:
            async with asyncio.timeout_at(min(ends, now + QUIT_MS / 1000)):
                await smtp.quit()
    smtp.close()


@lru_cache(maxsize=32)
def _trusted(ca_pem: str | None) -> ssl.SSLContext:
    """Return what checks certificate and name: the authorities of HTTPS, or the given ones alone.

    Not Egress' own context: that one says to servers that it speaks HTTP (ALPN).
    """
    if ca_pem is None:
        return httpx.create_ssl_context(trust_env=False)
    return ssl.create_default_context(cadata=ca_pem)


def _literal(opened: socket.socket) -> str:
    """Return our address as EHLO wants it of clients without a name. RFC 5321, 4.1.3."""
    address = opened.getsockname()[0]
    return f"[IPv6:{address}]" if ":" in address else f"[{address}]"


# ---------------------------------------------------------------- the answer


def _meant(error: "SMTPException", server: _Server) -> Retry | Refused:
    from aiosmtplib import (
        SMTPAuthenticationError,
        SMTPRecipientsRefused,
        SMTPResponseException,
        SMTPServerDisconnected,
    )

    if isinstance(error, SMTPRecipientsRefused):
        later = [one for one in error.recipients if one.code in range(400, 500)]
        first = (later or error.recipients)[0]  # not now for one: perhaps not never for all
        texts = [f"{one.recipient}: {one.code} {one.message}" for one in error.recipients]
        return _reply(first.code, "; ".join(texts), "send", server)
    if isinstance(error, SMTPResponseException):
        when = "login" if isinstance(error, SMTPAuthenticationError) else "send"
        return _reply(error.code, f"{error.code} {error.message}", when, server)
    if isinstance(error.__cause__, ssl.SSLError):
        return Retry(None, None, _said(server, f"no TLS connection: {error.__cause__}"))
    if isinstance(error, SMTPServerDisconnected):
        return Retry(None, None, _said(server, "closed the connection"))
    return Retry(None, None, _said(server, str(error)))


def _reply(code: int, text: str, when: str, server: _Server) -> Retry | Refused:
    said = _said(server, text)
    if code not in range(200, 600):  # aiosmtplib's -1: it was not SMTP
        return Retry(None, None, said)
    for phase, known, part, meaning in ERRORS:
        if phase not in (None, when) or known not in (None, code) or part not in text.lower():
            continue
        if meaning == "disables":
            return Refused(code, f"{said[: ERROR_CHARS_MAX - 80]}; {_REMEDY}", disables=True)
        return Retry(meaning, code, said)
    return Retry(None, code, said) if code in range(400, 500) else Refused(code, said)


def _said(server: _Server, text: str) -> str:
    text = _one_line(text)
    for secret in server.secrets:
        text = text.replace(secret, "[credential]")
        text = text.replace(base64.b64encode(secret.encode()).decode("ascii"), "[credential]")
    return f"{server.host}: {text}"[:ERROR_CHARS_MAX]


def _one_line(text: str) -> str:
    """Return a reply as one line of what can be stored: servers may say any bytes."""
    readable = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return " ".join(readable.replace("\x00", "").split())
