"""The guard of outgoing requests, against a real server on this machine."""

import asyncio
import datetime as dt
import ssl
from collections.abc import AsyncIterator, Sequence
from ipaddress import ip_network
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from engine.egress import Egress, EgressFailed, EgressLimits, EgressRefused, Resolve, Response
from tests.standins.http_server import Received, answer, http_server

LOCAL = [ip_network("127.0.0.0/8")]


class Names:
    """A name server that counts; each name has a list of answers, the last one stays."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = {name.replace("_", "."): found for name, found in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        if host not in self.answers:
            raise OSError(f"no name {host}")
        found = self.answers[host]
        return found.pop(0) if len(found) > 1 else found[0]


async def get(egress: Egress, url: str, timeout_ms: int = 5_000, **more: int) -> Response:
    return await egress.request("GET", httpx.URL(url), timeout_ms=timeout_ms, **more)


async def says_hello(received: Received) -> bytes:
    return answer(200, b"hello", Content_Type="text/plain")


@pytest.fixture
async def closed() -> AsyncIterator[Egress]:
    """An egress that may reach public addresses only."""
    egress = Egress(())
    yield egress
    await egress.close()


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "0"]
)
async def test_every_spelling_of_this_machine_is_refused(closed: Egress, host: str) -> None:
    """The address is checked, not its spelling; nothing is connected to."""
    async with http_server(says_hello) as server:
        with pytest.raises(EgressRefused, match=r"CLOUDCODE_EGRESS_ALLOW=\S+/(32|128)"):
            await get(closed, f"http://{host}:{server.port}/")

        assert server.connections == 0
    assert closed.blocked == {"address": 1}


async def test_the_error_is_the_exact_remedy(closed: Egress) -> None:
    """What the operator has to set stands in it."""
    with pytest.raises(EgressRefused) as refused:
        await get(closed, "http://10.0.0.5/")

    assert str(refused.value) == (
        "address 10.0.0.5 is private; "
        "the operator can allow it with CLOUDCODE_EGRESS_ALLOW=10.0.0.5/32"
    )


@pytest.mark.parametrize(
    "url", ["ftp://example.com/", "file:///etc/passwd", "/relative", "http:///x"]
)
async def test_other_schemes_are_refused(closed: Egress, url: str) -> None:
    """Only http and https, to a host."""
    with pytest.raises(EgressRefused):
        await get(closed, url)


async def test_the_connection_goes_to_the_checked_address() -> None:
    """One lookup: the second, which a rebinding name server answers otherwise, is not made."""
    names = Names(api_test=[["127.0.0.1"], ["10.0.0.1"]])

    async with http_server(says_hello) as server, _closing(LOCAL, names) as egress:
        first = await get(egress, f"http://api.test:{server.port}/a?b=c")
        second = await get(egress, f"http://api.test:{server.port}/")

        assert (first.status, first.body) == (200, b"hello")
        assert second.status == 200
        assert names.asked == ["api.test"]
        assert server.connections == 1
        assert server.received[0].target == "/a?b=c"
        assert server.received[0].headers["host"] == f"api.test:{server.port}"


async def test_a_name_that_leads_inside_is_refused() -> None:
    """A public name with a private address is the classic way in."""
    names = Names(evil_test=[["169.254.169.254"]])

    async with _closing(LOCAL, names) as egress:
        with pytest.raises(EgressRefused, match="metadata service"):
            await get(egress, "http://evil.test/latest/meta-data")


async def test_of_several_addresses_only_the_permitted_are_used() -> None:
    """A mixed answer cannot smuggle a private address in."""
    names = Names(mixed_test=[["10.0.0.1", "127.0.0.1"]])

    async with http_server(says_hello) as server, _closing(LOCAL, names) as egress:
        response = await get(egress, f"http://mixed.test:{server.port}/")

    assert response.body == b"hello"


async def test_the_next_address_is_tried_when_one_is_dead() -> None:
    """A host with one dead address stays reachable."""
    names = Names(two_test=[["127.0.0.2", "127.0.0.1"]])

    async with http_server(says_hello) as server, _closing(LOCAL, names) as egress:
        response = await get(egress, f"http://two.test:{server.port}/")

    assert response.body == b"hello"


async def test_tls_is_checked_against_the_name(tmp_path: Path) -> None:
    """SNI and certificate are those of the name, though the connection goes to an address."""
    seen: list[str | None] = []
    server_tls, client_tls = certificate(tmp_path, "api.test")
    server_tls.sni_callback = lambda _socket, name, _context: seen.append(name)
    names = Names(api_test=[["127.0.0.1"]], other_test=[["127.0.0.1"]])

    async with (
        http_server(says_hello, tls=server_tls) as server,
        _closing(LOCAL, names, client_tls) as egress,
    ):
        response = await get(egress, f"https://api.test:{server.port}/")
        with pytest.raises(EgressFailed) as failed:
            await get(egress, f"https://other.test:{server.port}/")

    assert response.body == b"hello"
    assert failed.value.reason == "tls"
    assert seen == ["api.test", "other.test"]


async def test_a_large_body_is_not_read_to_its_end() -> None:
    """Reading stops at the cap, however much the server would send."""

    async def endless(received: Received) -> bytes:
        return b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n" + b"x" * 300_000

    async with http_server(endless) as server, _closing(LOCAL) as egress:
        response = await get(egress, server.url, response_bytes_max=100_000)

    assert response.truncated
    assert len(response.body) == 100_000


async def test_a_silent_server_costs_the_time_limit_only() -> None:
    """The error says how long was waited."""

    async def silent(received: Received) -> bytes:
        await asyncio.sleep(60)
        return b""

    async with http_server(silent) as server, _closing(LOCAL) as egress:
        with pytest.raises(EgressFailed, match="within 50 ms") as failed:
            await get(egress, server.url, timeout_ms=50)

    assert failed.value.reason == "timeout"


async def test_a_slow_name_server_costs_the_time_limit_only() -> None:
    """The lookup is part of the time."""

    async def never(_host: str, _port: int) -> Sequence[str]:
        await asyncio.sleep(60)
        return []

    async with _closing(LOCAL, never) as egress:
        with pytest.raises(EgressFailed, match="within 50 ms"):
            await get(egress, "http://slow.test/", timeout_ms=50)


@pytest.mark.parametrize(
    ("out", "reason"), [(None, "protocol"), (b"SSH-2.0-x\r\n\r\n", "protocol")]
)
async def test_what_is_not_an_answer_fails(out: bytes | None, reason: str) -> None:
    """A dropped connection, or another protocol."""

    async def strange(received: Received) -> bytes | None:
        return out

    async with http_server(strange) as server, _closing(LOCAL) as egress:
        with pytest.raises(EgressFailed) as failed:
            await get(egress, server.url)

    assert failed.value.reason == reason


async def test_a_closed_port_and_an_unknown_name_fail() -> None:
    """Both are worth another try, and the error says which it was."""
    async with http_server(says_hello) as server:
        port = server.port
    async with _closing(LOCAL) as egress:
        with pytest.raises(EgressFailed) as connect:
            await get(egress, f"http://127.0.0.1:{port}/")
        with pytest.raises(EgressFailed) as dns:
            await get(egress, "http://does-not-exist.invalid/")

    assert connect.value.reason == "connect"
    assert dns.value.reason == "dns"


async def test_cookies_are_not_kept() -> None:
    """One tenant's cookie never goes out with another one's request."""

    async def bakes(received: Received) -> bytes:
        return answer(200, b"", Set_Cookie="session=1")

    async with http_server(bakes) as server, _closing(LOCAL) as egress:
        await get(egress, server.url)
        await get(egress, server.url)

        assert "cookie" not in server.received[1].headers


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "169.254.169.254"])
async def test_a_socket_to_a_forbidden_address_is_refused(closed: Egress, host: str) -> None:
    """What is not HTTP goes through the same check, with the same remedy."""
    async with http_server(says_hello) as server:
        with pytest.raises(EgressRefused, match=r"CLOUDCODE_EGRESS_ALLOW=\S+/(32|128)"):
            await closed.open_socket(host, server.port, timeout_ms=1_000)

        assert server.connections == 0
    assert closed.blocked == {"address": 1}


async def test_a_socket_goes_to_the_first_address_that_answers() -> None:
    """One lookup; a forbidden address is left out, a dead one is passed over."""
    names = Names(mail_test=[["10.0.0.1", "127.0.0.2", "127.0.0.1"], ["10.0.0.1"]])

    async with http_server(says_hello) as server, _closing(LOCAL, names) as egress:
        opened = await egress.open_socket("mail.test", server.port, timeout_ms=1_000)
        with opened:
            peer = opened.getpeername()

        assert peer == ("127.0.0.1", server.port)
    assert names.asked == ["mail.test"]


async def test_a_socket_that_cannot_be_opened_says_why() -> None:
    """A closed port, an unknown name and a slow name server: all worth another try."""

    async def never(_host: str, _port: int) -> Sequence[str]:
        await asyncio.sleep(60)
        return []

    async with http_server(says_hello) as server:
        port = server.port
    async with _closing(LOCAL) as egress:
        with pytest.raises(EgressFailed) as connect:
            await egress.open_socket("127.0.0.1", port, timeout_ms=1_000)
        with pytest.raises(EgressFailed) as dns:
            await egress.open_socket("does-not-exist.invalid", port, timeout_ms=5_000)
    async with _closing(LOCAL, never) as egress:
        with pytest.raises(EgressFailed) as slow:
            await egress.open_socket("slow.test", port, timeout_ms=50)

    assert [failed.value.reason for failed in (connect, dns, slow)] == ["connect", "dns", "timeout"]


class _closing:  # noqa: N801 - reads as what it does
    """An egress with these networks open, closed at the end."""

    def __init__(
        self,
        allow: Sequence,
        names: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.egress = Egress(allow, resolve=names, tls=tls, limits=EgressLimits(connect_ms=500))

    async def __aenter__(self) -> Egress:
        return self.egress

    async def __aexit__(self, *_: object) -> None:
        await self.egress.close()


def certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return a server's and a client's context for a certificate of `name` alone."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "both.pem"
    pem.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    return server, ssl.create_default_context(cafile=str(pem))
