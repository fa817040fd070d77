"""Where a function's requests may go: every spelling of every address that is not public.

The guard is the real one, with real sockets and servers; only names are resolved by a table, and
nowhere is it asked what a spelling means: either it is refused, or nothing inside hears of it.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from pathlib import Path
from typing import Any

import httpcore
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.addresses import NAT64_LENGTHS, Reach, split_denied, why_forbidden
from engine.allowed_hosts import PORTS_OF_OTHERS
from engine.causality import via
from engine.connectors.contract import check_url
from engine.egress import Egress, EgressFailed, EgressRefused
from engine.errors import HostCallRefused, Invalid
from engine.hostcalls.fetch import AT_ONCE_PER_PROJECT, Fetch
from runtimes.contract import Limits
from tests.conftest import Engine
from tests.standins.http_server import HttpServer, Received, answer, http_server
from tests.unit.test_egress import Names, certificate

LOCAL = ip_network("127.0.0.0/8")
_TLS = ssl.create_default_context()  # once: it takes a twentieth of a second
PUBLIC = Reach()
INSIDE = [
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
    "192.0.0.0/24", "192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4",
    "168.63.129.16/32", "100.100.100.200/32",
]  # fmt: skip
INSIDE_6 = [
    "::/96", "::1/128", "::ffff:0:0:0/96", "64:ff9b:1::/48", "100::/64", "2001::/23",
    "2001:db8::/32", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
    "fd00:ec2::254/128", "fd20:ce::254/128", "4000::/3", "8000::/1",
]  # fmt: skip
OUTSIDE = ["1.0.0.0/8", "8.0.0.0/7", "52.0.0.0/8", "93.184.0.0/16", "151.101.0.0/16"]


@dataclass
class AVersion:
    allowed_hosts: tuple[str, ...] = ("*",)
    project_id: str = "prj_1"


@dataclass
class ARun:
    version: AVersion = field(default_factory=AVersion)
    execution_id: str = "exe_1"
    limits: Limits = field(default_factory=lambda: Limits(cpu_ms=100, wall_ms=5_000, memory_mb=64))

    def via(self) -> str:
        return via("exe_1", 0, 1, "caller")


async def hello(received: Received) -> bytes:
    return answer(200, b"hello")


@asynccontextmanager
async def fetching(*allow: IPv4Network | IPv6Network, **options: Any) -> AsyncIterator[Fetch]:
    egress = Egress(allow, **{"tls": _TLS, **options})
    try:
        yield Fetch(egress)
    finally:
        await egress.close()


@pytest.fixture
async def inside() -> AsyncIterator[HttpServer]:
    """A server on this machine that no function may reach."""
    async with http_server(hello) as found:
        yield found


# --- addresses, as the guard sees them ---


def within(network: str) -> st.SearchStrategy[Any]:
    """Addresses of a network."""
    known = ip_network(network)
    return st.integers(0, known.num_addresses - 1).map(lambda at: known[at])


def embedded(address: IPv4Address, prefix: int, length: int) -> IPv6Address:
    """Return the address behind a NAT64 of this prefix: RFC 6052, 2.2, bit by bit."""
    bits = f"{int(address):032b}"
    text = f"{prefix >> (128 - length):0{length}b}"
    for at in range(length, 128):
        if at in range(64, 72):
            text += "0"
        else:
            text += bits[:1] or "0"
            bits = bits[1:]
    return IPv6Address(int(text, 2))


WRAPS: dict[str, Callable[[IPv4Address], IPv6Address]] = {
    "mapped": lambda v4: IPv6Address(0xFFFF << 32 | int(v4)),
    "NAT64": lambda v4: IPv6Address(int(IPv6Address("64:ff9b::")) | int(v4)),
    "6to4": lambda v4: IPv6Address(0x2002 << 112 | int(v4) << 80 | 1),
    "ISATAP": lambda v4: IPv6Address(int(IPv6Address("2606:4700::")) | 0x5EFE << 32 | int(v4)),
    "global ISATAP": lambda v4: IPv6Address(
        int(IPv6Address("2606:4700::")) | 0x0200_5EFE << 32 | int(v4)
    ),
}
NEVER: dict[str, Callable[[IPv4Address], IPv6Address]] = {
    "compatible": lambda v4: IPv6Address(int(v4)),
    "translated": lambda v4: IPv6Address(0xFFFF << 48 | int(v4)),
    "Teredo": lambda v4: IPv6Address(0x2001 << 112 | int(v4) ^ 0xFFFF_FFFF),
    **{
        f"local NAT64 /{length}": (
            lambda v4, length=length: embedded(v4, int(IPv6Address("64:ff9b:1::")), length)
        )
        for length in NAT64_LENGTHS
        if length >= 48
    },
}


@settings(deadline=None)
@given(
    address=st.sampled_from(INSIDE).flatmap(within),
    wrap=st.sampled_from([*WRAPS.values(), *NEVER.values()]),
)
def test_no_dress_makes_an_inner_address_public(
    address: IPv4Address, wrap: Callable[[IPv4Address], IPv6Address]
) -> None:
    """An IPv4 address, and every IPv6 address that a machine or a gateway would turn into it."""
    assert why_forbidden(address, PUBLIC) is not None
    assert why_forbidden(wrap(address), PUBLIC) is not None


@settings(deadline=None)
@given(address=st.sampled_from(INSIDE_6).flatmap(within))
def test_no_inner_address_of_ipv6_is_public(address: IPv6Address) -> None:
    """Nor one of a network that nobody has been given yet, nor with a zone."""
    assert why_forbidden(address, PUBLIC) is not None
    assert why_forbidden(IPv6Address(f"{address}%eth0"), PUBLIC) is not None


@settings(deadline=None)
@given(address=st.sampled_from(OUTSIDE).flatmap(within), wrap=st.sampled_from([*WRAPS.values()]))
def test_a_public_address_is_public_in_every_dress(
    address: IPv4Address, wrap: Callable[[IPv4Address], IPv6Address]
) -> None:
    """The guard refuses nobody who calls the Internet, from an IPv6 network too."""
    assert why_forbidden(address, PUBLIC) is None
    assert why_forbidden(wrap(address), PUBLIC) is None


@settings(deadline=None)
@given(
    address=st.sampled_from(INSIDE).flatmap(within),
    public=st.sampled_from(OUTSIDE).flatmap(within),
    length=st.sampled_from(NAT64_LENGTHS),
    outer=st.sampled_from(["2001:67c:2b0::", "2a00:1098:2c::", "fd12:3456:789a::"]),
)
def test_a_gateway_of_the_operators_own_hides_nothing(
    address: IPv4Address, public: IPv4Address, length: int, outer: str
) -> None:
    """What CLOUDCODE_EGRESS_NAT64 names is read in all the lengths that RFC 6052 has."""
    prefix = IPv6Network((outer, length), strict=False)
    reach = Reach(nat64=(prefix,))
    base = int(prefix.network_address)

    assert why_forbidden(embedded(address, base, length), reach) is not None
    assert why_forbidden(embedded(public, base, length), reach) is None


METADATA = ["169.254.169.254", "169.254.170.2", "168.63.129.16", "100.100.100.200", "fd00:ec2::254"]


@pytest.mark.parametrize("address", METADATA)
def test_a_metadata_service_is_opened_alone_or_not_at_all(address: str) -> None:
    """A network around it does not open it, however it is dressed; naming the address does."""
    found = ip_address(address)
    wide = Reach(allow=(ip_network("0.0.0.0/0"), ip_network("::/0")))
    alone = Reach(allow=(ip_network(address),))

    assert why_forbidden(found, wide) == "a cloud's metadata service"
    assert why_forbidden(found, alone) is None
    if isinstance(found, IPv4Address):
        for wrap in WRAPS.values():
            assert why_forbidden(wrap(found), wide) == "a cloud's metadata service"


def test_an_opened_gateway_opens_no_address_behind_it() -> None:
    """Whoever opens the prefix of a NAT64 has not opened the network that it leads to."""
    reach = Reach(allow=(ip_network("64:ff9b::/96"), ip_network("64:ff9b:1::/48")))

    assert why_forbidden(IPv6Address("64:ff9b::10.0.0.1"), reach) == "private"
    assert why_forbidden(IPv6Address("64:ff9b:1::10.0.0.1"), reach) is not None
    assert why_forbidden(IPv6Address("64:ff9b::8.8.8.8"), reach) is None


@pytest.mark.parametrize("dressed", [False, True])
@pytest.mark.parametrize("address", ["10.1.2.3", "93.184.216.34"])
def test_what_the_operator_closes_is_closed(address: str, dressed: bool) -> None:
    """CLOUDCODE_EGRESS_DENY wins over everything that opens."""
    found = WRAPS["NAT64"](IPv4Address(address)) if dressed else ip_address(address)
    everything = (ip_network("0.0.0.0/0"), ip_network("::/0"), ip_network(f"{address}/32"))
    reach = Reach(allow=everything, deny=(ip_network(f"{address}/31", strict=False),))

    assert why_forbidden(found, reach) == "closed by the operator"


def test_what_can_be_closed() -> None:
    """Addresses, networks and hosts; a network with a mistake in it is no host."""
    networks, hosts = split_denied(["10.0.0.0/8", "::1", "*.Corp.example", "db:5432"])

    assert networks == (ip_network("10.0.0.0/8"), ip_network("::1"))
    assert hosts == ("*.corp.example", "db:5432")
    for wrong in ("10.0.0.1/8", "10.0.0.0/33", "http://x/", "a b"):
        with pytest.raises(Invalid):
            split_denied([wrong])


@pytest.mark.parametrize(
    "entry",
    ["127.0.0.1:8080", "[::1]:8080", "[::1]", "127.1", "0x7f000001", "127.0.0.1.", "2130706433:80"],
)
def test_an_address_that_would_close_only_its_spelling_is_refused(entry: str) -> None:
    """Names that lead there, and its other spellings, would stay open."""
    with pytest.raises(Invalid, match="without a port"):
        split_denied([entry])


# --- URLs, as a function writes them ---

SPELLINGS = [
    "127.0.0.1", "127.0.0.1.", "127.1", "127.0.1", "127.255.255.254", "2130706433", "0x7f000001",
    "0x7f.1", "0x7F.0x0.0x0.0x1", "017700000001", "0177.0.0.1", "0177.0.0.01", "0", "0.0.0.0",
    "00000177.1", "127.0.0.1%2e", "127.0.0%2E1", "%31%32%37.0.0.1", "127%2e0%2e0%2e1", "[::1]",
    "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::FFFF:7F00:0001]",
    "[0:0:0:0:0:ffff:127.0.0.1]", "[::127.0.0.1]", "[64:ff9b::127.0.0.1]", "[64:ff9b:1::7f00:1]",
    "[2002:7f00:1::]", "[::ffff:0:127.0.0.1]", "[::1%25lo]", "[::1%lo]", "[fe80::1%25eth0]",
    "[::1]%25lo", "localhost", "LocalHost", "localhost.", "LOCALHOST.", "a.localhost",
    "\uff11\uff12\uff17.0.0.1", "127\u30020\u30020\u30021", "127\uff0e0\uff0e0\uff0e1",
    "\u2460\u2461\u2466.0.0.1", "\u217cocalhost", "\uff4c\uff4f\uff43\uff41\uff4c\uff48ost",
    "loc\u00adalhost", "\u200blocalhost", "loc\u0430lhost", "127.0.0.1\u3002", ".127.0.0.1",
    "127..0.0.1", "127.0.0.1..", "localhost..", "..localhost", "169.254.169.254", "0xa9fea9fe",
    "169.254.43518", "[::ffff:a9fe:a9fe]", "[fd00:ec2::254]", "metadata", "instance-data",
    "ip6-localhost", "ip6-loopback", "127.0.0.1\\", "\\127.0.0.1", "{127.0.0.1}", "127.0.0.1;",
    "[127.0.0.1]", "[::1", "::1]", "[::1]]", "127.0.0.1 ", "127.0.0.1\t", "127.0.0.1\n.example.com",
    "127.0.0.1\0.example.com", "127.0.0.1%00.example.com", "127.0.0.1#.example.com",
    "127.0.0.1?.example.com", "127.0.0.1/.example.com", "1.1.1.1 127.0.0.1", "a" * 64 + ".com",
    "a." * 130 + "com", "-", "_", "*", "xn--a", "xn--zca", "0x", "0x7f.0x", "1.2.3.4.5", "256.1",
    "4294967297",
]  # fmt: skip


@pytest.mark.parametrize("host", SPELLINGS, ids=lambda host: ascii(host)[1:60])
async def test_no_spelling_reaches_this_machine(inside: HttpServer, host: str) -> None:
    """By the system's own resolver: refused, or nowhere to be found; nothing is connected to."""
    async with fetching() as fetch:
        for url in (f"http://{host}:{inside.port}/", f"HTTP://{host}:{inside.port}/x@example.com"):
            with pytest.raises(HostCallRefused):
                await fetch.call(ARun(), {"url": url, "timeout_ms": 1_000}, 0)

    assert inside.connections == 0


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com@127.0.0.1:{port}/",
        "http://example.com:80@127.0.0.1:{port}/",
        "http://example.com%40127.0.0.1:{port}/",
        "http://127.0.0.1:{port}@example.com/",
        "http://a:b@127.0.0.1:{port}/",
        "http://@127.0.0.1:{port}/",
        "http://127.0.0.1:{port}\\@example.com/",
        "http://example.com\\@127.0.0.1:{port}/",
        "http:127.0.0.1:{port}/",
        "http:/127.0.0.1:{port}/",
        "http:///127.0.0.1:{port}/",
        "http:\\\\127.0.0.1:{port}\\",
        "//127.0.0.1:{port}/",
        "\thttp://127.0.0.1:{port}/",
        "ht\ntp://127.0.0.1:{port}/",
        "https://127.0.0.1:{port}/",
        "ws://127.0.0.1:{port}/",
        "ftp://127.0.0.1:{port}/",
        "gopher://127.0.0.1:{port}/_GET%20/",
        "unix:///var/run/docker.sock",
        "http+unix://%2fvar%2frun%2fdocker.sock/",
        "file:///etc/passwd",
        "data:text/plain,x",
        "blob:http://127.0.0.1:{port}/",
        "view-source:http://127.0.0.1:{port}/",
        "http://127.0.0.1:{port}:80/",
        "http://127.0.0.1:+{port}/",
        "http://127.0.0.1:0{port}/",
        "http://127.0.0.1:٨٠/",
        "http://127.0.0.1:99999/",
    ],
)
async def test_no_trick_with_a_url_reaches_this_machine(inside: HttpServer, url: str) -> None:
    """User and password, back slashes, missing slashes, other schemes."""
    async with fetching(resolve=Names(example_com=[["127.0.0.1"]])) as fetch:
        with pytest.raises(HostCallRefused):
            await fetch.call(ARun(), {"url": url.format(port=inside.port)}, 0)

    assert inside.connections == 0


def spelled(address: IPv4Address) -> st.SearchStrategy[str]:
    """Return ways in which resolvers let one write an IPv4 address."""
    octets = list(address.packed)
    number = int(address)
    styles: list[Callable[[int], str]] = [
        str,
        hex,
        lambda one: f"0{one:o}",
        lambda one: f"{one:#X}",
    ]

    def written(style: Sequence[int], parts: int) -> str:
        last = int.from_bytes(address.packed[parts - 1 :])
        told = [*octets[: parts - 1], last]
        return ".".join(styles[way](one) for way, one in zip(style, told, strict=False))

    classic = st.tuples(st.lists(st.integers(0, 3), min_size=4, max_size=4), st.integers(1, 4)).map(
        lambda pair: written(*pair)
    )
    wrapped = st.sampled_from([*WRAPS.values(), *NEVER.values()]).map(
        lambda wrap: f"[{wrap(address)}]"
    )
    return st.one_of(classic, wrapped, st.just(str(number)), st.just(f"{address}."))


@settings(deadline=None, max_examples=150)
@given(host=st.sampled_from(INSIDE).flatmap(within).flatmap(spelled))
def test_no_spelling_of_an_inner_address_is_connected_to(host: str) -> None:
    """Chosen at random: a network, an address in it, a spelling. Nothing is ever connected to."""
    connected: list[str] = []

    async def ask() -> None:
        async with fetching() as fetch:
            fetch._egress._network._network = _NoNetwork(connected)  # type: ignore[assignment]
            with pytest.raises(HostCallRefused):
                await fetch.call(ARun(), {"url": f"http://{host}/"}, 0)

    asyncio.run(ask())

    assert connected == []


@settings(deadline=None, max_examples=40)
@given(host=st.sampled_from(OUTSIDE).flatmap(within).map(str))
def test_public_addresses_are_connected_to(host: str) -> None:
    """The same guard, the other way round: or the test above would say nothing."""
    connected: list[str] = []

    async def ask() -> None:
        async with fetching() as fetch:
            fetch._egress._network._network = _NoNetwork(connected)  # type: ignore[assignment]
            with pytest.raises(EgressFailed):
                await fetch.call(ARun(), {"url": f"http://{host}/"}, 0)

    asyncio.run(ask())

    assert connected == [host]


class _NoNetwork:
    """The last step before the kernel: notes where a connection would go, and makes none."""

    def __init__(self, connected: list[str]) -> None:
        self._connected = connected

    async def connect_tcp(self, host: str, *_: object) -> Any:
        self._connected.append(host)
        raise httpcore.ConnectError("not in a test")


# --- names, redirects, connections ---


@pytest.mark.parametrize(
    "found",
    [["127.0.0.1"], ["::1"], ["10.0.0.1", "192.168.0.1"], ["::ffff:127.0.0.1"], ["fe80::1%lo"], []],
    ids=str,
)
async def test_a_name_that_leads_inside_is_refused(inside: HttpServer, found: list[str]) -> None:
    """Whatever the name is called, and also if all its addresses are inside."""
    names = Names(evil_example_com=[found])
    async with fetching(resolve=names) as fetch:
        with pytest.raises((EgressRefused, EgressFailed)):
            await fetch.call(ARun(), {"url": f"http://evil.example.com:{inside.port}/"}, 0)

    assert inside.connections == 0
    assert names.asked == ["evil.example.com"]


async def test_of_a_mixed_answer_only_the_public_address_is_tried(inside: HttpServer) -> None:
    """The private one is not what is tried when the public one does not answer."""
    names = Names(mixed_test=[["127.0.0.2", "127.0.0.1"]])
    async with fetching(ip_network("127.0.0.2/32"), resolve=names) as fetch:
        with pytest.raises(EgressFailed):
            await fetch.call(ARun(), {"url": f"http://mixed.test:{inside.port}/"}, 0)

    assert inside.connections == 0


async def test_a_name_that_changes_its_mind_is_asked_anew_and_checked_anew(
    inside: HttpServer,
) -> None:
    """Rebinding: what is connected to is what was checked, at each connection."""
    names = Names(turns_test=[["127.0.0.1"], ["127.0.0.9"], ["127.0.0.1"]])
    async with fetching(ip_network("127.0.0.1/32"), resolve=names) as fetch:
        url = f"http://turns.test:{inside.port}/"
        first = await fetch.call(ARun(), {"url": url}, 0)
        await fetch._egress._pool.aclose()
        with pytest.raises(EgressRefused, match=r"127\.0\.0\.9 is loopback"):
            await fetch.call(ARun(), {"url": url}, 0)

    assert first["body"] == "hello"
    assert names.asked == ["turns.test"] * 2
    assert inside.connections == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.9:{port}/",
        "//127.0.0.9:{port}/",
        "http://2130706441:{port}/",
        "http://0x7f.9:{port}/",
        "http://[::ffff:127.0.0.9]:{port}/",
        "http://inner.test:{port}/",
        "http://169.254.169.254/latest/meta-data/",
        "http://user:password@127.0.0.9:{port}/",
        "file:///etc/passwd",
        "gopher://127.0.0.9:{port}/",
        "http://127.0.0.9%2f:{port}/",
        "http://other.test:22/",
    ],
)
async def test_no_redirect_leads_inside(status: int, location: str) -> None:
    """Each hop is checked as if it were the first."""
    names = Names(start_test=[["127.0.0.1"]], inner_test=[["127.0.0.9"]])

    async def redirects(received: Received) -> bytes:
        return answer(status, b"", Location=location.format(port=server.port))

    async with (
        http_server(redirects) as server,
        fetching(ip_network("127.0.0.1/32"), resolve=_numbers(names)) as fetch,
    ):
        with pytest.raises(HostCallRefused):
            await fetch.call(ARun(), {"url": f"http://start.test:{server.port}/"}, 0)

        assert len(server.received) == 1


def _numbers(names: Names) -> Any:
    """Return a resolver of these names, and of addresses as the system reads them."""
    system = Egress((), tls=_TLS)

    async def resolve(host: str, port: int) -> Sequence[str]:
        if host in names.answers:
            return await names(host, port)
        return await system._look_up(host, port)

    return resolve


async def test_a_redirect_to_a_host_that_the_function_may_not_reach() -> None:
    """`allowed_hosts` hold for every hop, and the port is part of it."""

    async def redirects(received: Received) -> bytes:
        return answer(302, b"", Location=f"http://other.test:{server.port}/")

    names = Names(start_test=[["127.0.0.1"]], other_test=[["127.0.0.1"]])
    run = ARun(AVersion(("start.test", "other.test:1")))
    async with http_server(redirects) as server, fetching(LOCAL, resolve=names) as fetch:
        with pytest.raises(EgressRefused, match=r"add 'other\.test' to allowed_hosts"):
            await fetch.call(run, {"url": f"http://start.test:{server.port}/"}, 0)

    assert names.asked == ["start.test"]


async def test_a_certificate_of_another_name_is_none(tmp_path: Path) -> None:
    """Whoever answers under a name's address has to be that name: also on a redirect."""
    server_tls, client_tls = certificate(tmp_path, "right.test")
    names = Names(right_test=[["127.0.0.1"]], wrong_test=[["127.0.0.1"]])

    async def redirects(received: Received) -> bytes:
        return answer(302, b"", Location=f"https://wrong.test:{server.port}/")

    async with (
        http_server(redirects, tls=server_tls) as server,
        fetching(LOCAL, resolve=names, tls=client_tls) as fetch,
    ):
        with pytest.raises(EgressFailed) as failed:
            await fetch.call(ARun(), {"url": f"https://right.test:{server.port}/"}, 0)

        assert len(server.received) == 1
    assert failed.value.reason == "tls"


async def test_a_connection_is_used_again_for_its_own_name_alone(
    inside: HttpServer,
) -> None:
    """Two names of one server share no connection: each is looked up and checked for itself."""
    names = Names(one_test=[["127.0.0.1"]], two_test=[["127.0.0.1"]])
    async with fetching(LOCAL, resolve=names) as fetch:
        for name in ("one", "one", "two", "one", "two"):
            await fetch.call(ARun(), {"url": f"http://{name}.test:{inside.port}/"}, 0)

    assert inside.connections == 2
    assert names.asked == ["one.test", "two.test"]


async def test_http_2_is_not_spoken(tmp_path: Path) -> None:
    """A server that offers it is asked for HTTP/1.1: no connection serves several names."""
    server_tls, client_tls = certificate(tmp_path, "api.test")
    server_tls.set_alpn_protocols(["h2", "http/1.1"])
    offered: list[str | None] = []

    async with (
        http_server(hello, tls=server_tls) as server,
        fetching(LOCAL, resolve=Names(api_test=[["127.0.0.1"]]), tls=client_tls) as fetch,
    ):
        await fetch.call(ARun(), {"url": f"https://api.test:{server.port}/"}, 0)
        (connection,) = fetch._egress._pool.connections
        stream = connection._connection._network_stream  # type: ignore[attr-defined]
        tls: ssl.SSLObject = stream.get_extra_info("ssl_object")
        offered.append(tls.selected_alpn_protocol())

    assert offered[0] in (None, "http/1.1")


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"])
async def test_no_proxy_is_asked(
    inside: HttpServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """One in the environment would resolve names itself, and reach what we do not."""
    monkeypatch.setenv(name, f"http://127.0.0.1:{inside.port}")
    names = Names(public_test=[["127.0.0.2"]])
    async with fetching(LOCAL, resolve=names) as fetch:
        with pytest.raises(EgressFailed):
            await fetch.call(ARun(), {"url": "http://public.test:8/"}, 0)

    assert inside.connections == 0


# --- ports, hosts that are closed, sizes, and how many at once ---


@pytest.mark.parametrize("port", [22, 25, 53, 110, 587, 6000, 6667, 10080])
async def test_ports_of_other_protocols_need_to_be_named(port: int) -> None:
    """A mail server would read a request as commands; the error says what to write."""
    async with fetching(LOCAL) as fetch:
        wide = ARun(AVersion(("127.0.0.1", "*")))
        named = ARun(AVersion(("*", f"127.0.0.1:{port}")))
        url = f"http://127.0.0.1:{port}/"

        with pytest.raises(EgressRefused, match=rf"add '127\.0\.0\.1:{port}' to") as refused:
            await fetch.call(wide, {"url": url}, 0)
        with pytest.raises(EgressFailed):  # nobody listens there
            await fetch.call(named, {"url": url}, 0)

    assert port in PORTS_OF_OTHERS
    assert refused.value.reason == "port"


async def test_a_webhook_goes_to_no_port_of_another_protocol() -> None:
    """Neither one that is to be stored, nor one that was stored before."""
    egress = Egress((LOCAL,))
    with pytest.raises(Invalid, match="port 25 belongs to another protocol"):
        check_url("https://hooks.example.com:25/", "/url")
    with pytest.raises(EgressRefused, match="port 25 belongs to another protocol"):
        await egress.request("POST", httpx.URL("http://127.0.0.1:25/"), timeout_ms=1_000)
    await egress.close()


@pytest.mark.parametrize(
    ("denied", "url"),
    [
        ("closed.test", "http://closed.test:{port}/"),
        ("closed.test", "http://CLOSED.test.:{port}/"),
        ("*.test", "http://closed.test:{port}/"),
        ("closed.test:{port}", "http://closed.test:{port}/"),
        ("127.0.0.1", "http://closed.test:{port}/"),
        ("127.0.0.0/8", "http://closed.test:{port}/"),
    ],
)
async def test_what_the_operator_closes_no_request_reaches(
    inside: HttpServer, denied: str, url: str
) -> None:
    """By its name, before it is looked up, or by its address, although both are open."""
    networks, hosts = split_denied([denied.format(port=inside.port)])
    names = Names(closed_test=[["127.0.0.1"]])
    async with fetching(LOCAL, deny=networks, deny_hosts=hosts, resolve=names) as fetch:
        with pytest.raises(EgressRefused, match="CLOUDCODE_EGRESS_DENY"):
            await fetch.call(ARun(), {"url": url.format(port=inside.port)}, 0)
        with pytest.raises(EgressRefused, match="CLOUDCODE_EGRESS_DENY"):
            await fetch._egress.open_socket("closed.test", inside.port, timeout_ms=1_000)

    assert inside.connections == 0


def test_the_operators_words_reach_the_guard(own_engine: Callable[..., Engine]) -> None:
    """A function of a running engine meets all three settings."""
    engine = own_engine(egress_deny="127.0.0.2,closed.example", egress_nat64="2001:67c:2b0::/96")
    source = """export default async (hosts) => Promise.all(hosts.map((host) =>
        fetch(`http://${host}:8/`).catch((error) => error.message)))"""
    engine.deploy("asks", source, allowed_hosts=["*"])

    told = engine.invoke(
        "asks", ["127.0.0.2", "closed.example", "[2001:67c:2b0::7f00:2]", "[2001:67c:2b0::a00:1]"]
    ).json()

    assert "127.0.0.2 is closed by the operator" in told[0]
    assert "closed.example is closed by the operator" in told[1]
    assert "closed by the operator" in told[2]
    assert "is private" in told[3]


@pytest.mark.parametrize("head", [b"X-Large: " + b"x" * 200_000, b"a: b\r\n" * 40_000])
async def test_an_answer_with_an_endless_head_is_dropped(head: bytes) -> None:
    """One header or many: what is kept of a head has an end."""

    async def endless(received: Received) -> bytes:
        return b"HTTP/1.1 200 OK\r\n" + head + b"\r\nContent-Length: 0\r\n\r\n"

    async with http_server(endless) as server, fetching(LOCAL) as fetch:
        with pytest.raises(EgressFailed) as failed:
            await fetch.call(ARun(), {"url": server.url}, 0)

    assert failed.value.reason == "protocol"


async def test_a_server_that_trickles_costs_the_time_limit_only() -> None:
    """Interim answers without an end are no way to hold a connection for ever."""

    async def trickles(received: Received) -> bytes:
        return b"HTTP/1.1 103 Early Hints\r\n\r\n" * 200

    async with http_server(trickles) as server, fetching(LOCAL) as fetch:
        with pytest.raises(EgressFailed, match="did not answer within"):
            await fetch.call(ARun(), {"url": server.url, "timeout_ms": 300}, 0)


async def test_one_projects_slow_servers_leave_the_others_their_connections() -> None:
    """A project has so many requests on their way; its others wait, those of others do not."""
    release = asyncio.Event()

    async def slow(received: Received) -> bytes:
        if received.target == "/slow":
            await release.wait()
        return answer(200, b"hello")

    async with http_server(slow) as server, fetching(LOCAL) as fetch:
        greedy = ARun(AVersion(project_id="prj_greedy"))
        url = f"{server.url}/slow"
        waiting = [
            asyncio.create_task(fetch.call(greedy, {"url": url}, number))
            for number in range(3 * AT_ONCE_PER_PROJECT)
        ]
        while len(server.received) < AT_ONCE_PER_PROJECT:
            await asyncio.sleep(0.01)

        other = await fetch.call(ARun(), {"url": server.url}, 0)
        sent = sum(one.target == "/slow" for one in server.received)
        release.set()
        answers = await asyncio.gather(*waiting)

    assert other["body"] == "hello"
    assert sent == AT_ONCE_PER_PROJECT
    assert [one["status"] for one in answers] == [200] * (3 * AT_ONCE_PER_PROJECT)
