"""A mail server with STARTTLS or TLS, a private authority, logins, limits, and moods.

aiosmtpd keeps to RFC 5321; what it would not do by itself stands in `_Session`.
"""

import asyncio
import datetime as dt
import ssl
import tempfile
import threading
from collections.abc import Callable, Mapping
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any, ClassVar, Self

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, TLSSetupException
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.standins.provider import Case, Provider

USERNAME = "alarms@factory.example"
PASSWORD = "correct horse battery staple"
SIZE_MAX = 512 * 1024
LINE_MAX = 998
ONCE = ("Date", "From", "Message-ID", "Subject")
RECIPIENTS = {
    "nobody@example.com": "550 5.1.1 No such user here",
    "grey@example.com": "451 4.7.1 Greylisted, please come back later",
    "busy@example.com": "450 4.2.1 The user is receiving mail too quickly",
    "full@example.com": "452 4.2.2 The mailbox is full",
    "over@example.com": "552 5.2.2 Over quota",
    "odd@example.com": "553 5.1.3 The address is not valid",
    "slow@example.com": "550 5.4.5 Daily user sending limit exceeded",
    "strange@example.com": b"550 5.1.1 \xff\xfe\x00 what",
}


class StandIn(Provider):
    kind: ClassVar[str] = "mail"
    message: ClassVar[dict[str, Any]] = {
        "to": "Ada <ada@example.com>",
        "subject": "The pump is off",
        "text": "Since 10:40.\n",
    }

    def __init__(
        self,
        *,
        security: str = "starttls",
        name: str = "127.0.0.1",
        smtputf8: bool = True,
        logins: tuple[str, ...] = ("PLAIN", "LOGIN"),
    ) -> None:
        super().__init__()
        self.security = security
        self.name = name
        self.smtputf8 = smtputf8
        self.logins = logins
        self.mood = ""
        self.password = PASSWORD
        self.connections = 0
        self.lines: list[bytes] = []  # every command that came in, of all connections
        self.sessions: list[_Session] = []
        self.port = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def connection(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "credentials": {"username": USERNAME, "password": PASSWORD},
            "settings": {
                "host": "127.0.0.1",
                "port": self.port,
                "from": f"Factory <{USERNAME}>",
                "ca_pem": certificates(self.name)[0],
            },
        }

    def behaviours(self) -> Mapping[str, Callable[[Case], None]]:
        return {
            "takes it": lambda _case: None,
            "takes it for one of two recipients": to("ada@example.com", "nobody@example.com"),
            "takes it for one of two recipients, and greylists the other (451)": to(
                "ada@example.com", "grey@example.com"
            ),
            "greylists one of two (451), on the last attempt that there is": last_attempt,
            "greylists the sender (451)": to("grey@example.com"),
            "says that the user gets too much mail (450)": to("busy@example.com"),
            "says that the mailbox is full (452)": to("full@example.com"),
            "is shutting down (421)": self._in_mood("421"),
            "cannot log in anybody just now (454)": self._in_mood("454"),
            "throttles (454)": self._in_mood("throttles"),
            "has reached its daily quota (Gmail's 550 5.4.5)": to("slow@example.com"),
            "does not know the password (535)": wrong_password,
            "does not know the user (550)": to("nobody@example.com"),
            "knows none of two users (550), but one perhaps later (451)": to(
                "nobody@example.com", "grey@example.com"
            ),
            "finds the message too big (552)": self._in_mood("small"),
            "does not take the address (553)": to("odd@example.com"),
            "does not like the content (554)": self._in_mood("554"),
            "does not let anybody in (554)": self._in_mood("closed"),
            "offers no STARTTLS": self._in_mood("no starttls"),
            "has a certificate of another name": self._in_mood("other name"),
            "does not speak SMTP": self._in_mood("http"),
            "closes the connection in the middle of the message": self._in_mood("drops in data"),
            "closes the connection after the message, without an answer": self._in_mood(
                "drops after data"
            ),
            "never answers": self._in_mood("silent"),
            "never answers the message": self._in_mood("silent after data"),
            "would get no recipient": without_recipient,
            "would get a subject with a line break": changed(subject="a\r\nBcc: b@example.com"),
        }

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _in_mood(self, mood: str) -> Callable[[Case], None]:
        def prepare(_case: Case) -> None:
            self.mood = mood

        return prepare

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        implicit = context(self.name) if self.security == "tls" else None
        server = await self._loop.create_server(self._session, "127.0.0.1", 0, ssl=implicit)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for session in self.sessions:
            session.leave()
        await asyncio.sleep(0)

    def _session(self) -> "_Session":
        self.connections += 1
        offered = self.security == "starttls" and self.mood != "no starttls"
        tls = context("other.example" if self.mood == "other name" else self.name)
        session = _Session(
            self,
            hostname="mail.factory.example",
            loop=self._loop,
            data_size_limit=200 if self.mood == "small" else SIZE_MAX,
            enable_SMTPUTF8=self.smtputf8,
            tls_context=tls if offered else None,
            require_starttls=offered,
            auth_required=offered,
            auth_require_tls=self.security == "starttls",
            auth_exclude_mechanism={"PLAIN", "LOGIN"} - set(self.logins),
            authenticator=self._known,
        )
        self.sessions.append(session)
        return session

    def _known(self, _server: Any, _session: Any, _envelope: Any, _kind: str, data: Any) -> Any:
        known = (data.login, data.password) == (USERNAME.encode(), self.password.encode())
        return AuthResult(success=known, handled=False)

    # aiosmtpd asks these.

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, _server: Any, session: Any, envelope: Envelope, address: str, _options: list[str]
    ) -> str | bytes:
        if self.security != "none" and not session.authenticated:
            return "530 5.7.0 Authentication required"
        reply = RECIPIENTS.get(address)
        if reply is not None:
            return reply
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_exception(self, error: Exception) -> str:
        """Know clients that go away while TLS begins."""
        assert isinstance(error, TLSSetupException), error
        return "421 4.7.0 No TLS"

    async def handle_DATA(  # noqa: N802 - aiosmtpd's name
        self, server: "_Session", _session: Any, envelope: Envelope
    ) -> str:
        wrong = what_is_wrong(envelope)
        with self.lock:
            if wrong is not None:
                self.refused.append(wrong)
                return f"554 5.6.0 {wrong}"
            if self.mood == "554":
                return "554 5.7.1 Message rejected as spam"
            if self.mood == "throttles":
                return "454 Throttling failure: Maximum sending rate exceeded."
            self.accepted.append(
                {
                    "sender": envelope.mail_from,
                    "recipients": list(envelope.rcpt_tos),
                    "content": envelope.content,
                    "message": read(envelope.content),
                }
            )
        if self.mood == "drops after data":
            server.leave()
        if self.mood == "silent after data":
            await asyncio.Event().wait()
        return "250 2.0.0 OK: queued as 4F2A1"


class _Session(SMTP):
    """One connection."""

    def __init__(self, stand_in: StandIn, **settings: Any) -> None:
        self._of = stand_in
        super().__init__(stand_in, **settings)

    def leave(self) -> None:
        for transport in (self.transport, self._original_transport):
            if transport is not None:
                transport.abort()

    async def _handle_client(self) -> None:
        greetings = {
            "421": b"421 4.3.2 The server is shutting down\r\n",
            "closed": b"554 5.3.2 No mail here\r\n",
            "http": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
        }
        if self._of.mood in greetings:
            self._writer.write(greetings[self._of.mood])
            await self._writer.drain()
            self._writer.close()
        elif self._of.mood == "silent":
            await asyncio.Event().wait()
        else:
            await super()._handle_client()

    def connection_lost(self, error: Exception | None) -> None:
        if self._timeout_handle is not None:  # aiosmtpd says it twice after a failed handshake
            super().connection_lost(error)

    async def smtp_EHLO(self, hostname: str) -> None:  # noqa: N802 - aiosmtpd's name
        self._of.lines.append(f"EHLO {hostname}".encode())
        await super().smtp_EHLO(hostname)

    async def smtp_NOOP(self, arg: str) -> None:  # noqa: N802 - aiosmtpd's name
        self._of.lines.append(b"NOOP")
        await super().smtp_NOOP(arg)

    async def smtp_MAIL(self, arg: str | None) -> None:  # noqa: N802 - aiosmtpd's name
        self._of.lines.append(f"MAIL {arg}".encode())
        await super().smtp_MAIL(arg)

    async def smtp_AUTH(self, arg: str) -> None:  # noqa: N802 - aiosmtpd's name
        self._of.lines.append(f"AUTH {arg.split(maxsplit=1)[0]}".encode())
        if self._of.mood == "454":
            await self.push("454 4.7.0 Temporary authentication failure")
        else:
            await super().smtp_AUTH(arg)

    async def smtp_RSET(self, arg: str) -> None:  # noqa: N802 - aiosmtpd's name
        self._of.lines.append(b"RSET")
        await super().smtp_RSET(arg)

    async def smtp_DATA(self, arg: str) -> None:  # noqa: N802 - aiosmtpd's name
        self._of.lines.append(b"DATA")
        if self._of.mood == "drops in data":
            await self.push("354 Go on")
            await self._reader.read(10)
            self.leave()
        else:
            await super().smtp_DATA(arg)


def what_is_wrong(envelope: Envelope) -> str | None:
    """Return what RFC 5322 and 6532 do not allow in the message."""
    assert isinstance(envelope.content, bytes)
    if any(len(line) > LINE_MAX for line in envelope.content.split(b"\r\n")):
        return "a line is too long"
    if b"\n" in envelope.content.replace(b"\r\n", b"") or b"\x00" in envelope.content:
        return "a bare line feed or a NUL"
    if not envelope.smtp_utf8 and not envelope.content.isascii():
        return "bytes beyond ASCII"
    message = read(envelope.content)
    missing = [name for name in ONCE if len(message.get_all(name, [])) != 1]
    if missing:
        return f"there is not one {missing[0]}"
    if "Bcc" in message:
        return "Bcc can be seen"
    if not any(name in message for name in ("To", "Cc")):
        return "it is for nobody"
    return None


def read(content: Any) -> EmailMessage:
    found = message_from_bytes(content, policy=default)
    assert isinstance(found, EmailMessage)
    return found


def to(*addresses: str) -> Callable[[Case], None]:
    return changed(to=list(addresses))


def changed(**fields: Any) -> Callable[[Case], None]:
    return lambda case: case.message.update(fields)


def last_attempt(case: Case) -> None:
    case.settings["retries"] = {"max_attempts": 1}
    case.message["to"] = ["ada@example.com", "grey@example.com"]


def wrong_password(case: Case) -> None:
    case.credentials["password"] = "incorrect horse battery"


def without_recipient(case: Case) -> None:
    del case.message["to"]


@cache
def certificates(name: str) -> tuple[str, str]:
    """Return a private authority's certificate, and key and certificate of a server of it."""
    now = dt.datetime.now(dt.UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, one)]) for one in ("CA", name)]
    is_address = name[0].isdigit()
    shown = x509.IPAddress(ip_address(name)) if is_address else x509.DNSName(name)
    made = []
    for at, extension in enumerate(
        (x509.BasicConstraints(ca=True, path_length=0), x509.SubjectAlternativeName([shown]))
    ):
        builder = (
            x509.CertificateBuilder()
            .subject_name(names[at])
            .issuer_name(names[0])
            .public_key(keys[at].public_key())
            .serial_number(at + 1)
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(extension, critical=at == 0)
        )
        made.append(builder.sign(keys[0], hashes.SHA256()))
    authority, server = (one.public_bytes(serialization.Encoding.PEM).decode() for one in made)
    key = keys[1].private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return authority, key.decode() + server


@cache
def context(name: str) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        pem = Path(folder) / "server.pem"
        pem.write_text(certificates(name)[1])
        made.load_cert_chain(pem)
    return made
