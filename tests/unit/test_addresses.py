"""Where requests may go, by address and by allowed_hosts."""

from ipaddress import ip_address, ip_network

import pytest

from engine.addresses import Reach, why_forbidden
from engine.allowed_hosts import check_allowed_hosts, host_allowed
from engine.errors import Invalid

FORBIDDEN = {
    "0.0.0.0": "unspecified",
    "10.0.0.5": "private",
    "100.64.0.1": "shared by a carrier (CGNAT)",
    "100.100.100.200": "a cloud's metadata service",
    "127.0.0.1": "loopback",
    "127.255.255.254": "loopback",
    "168.63.129.16": "a cloud's metadata service",
    "169.254.169.254": "a cloud's metadata service",
    "169.254.1.1": "link-local",
    "172.31.255.255": "private",
    "192.168.1.1": "private",
    "198.18.0.1": "reserved for benchmarks",
    "203.0.113.9": "reserved for documentation",
    "224.0.0.1": "multicast",
    "255.255.255.255": "reserved",
    "::": "unspecified",
    "::1": "loopback",
    "::10.0.0.1": "reserved",
    "::ffff:10.0.0.5": "private",
    "::ffff:169.254.169.254": "a cloud's metadata service",
    "64:ff9b::7f00:1": "loopback",
    "64:ff9b:1::1": "private",
    "2002:0a00:0005::1": "private",
    "2002:7f00:1::": "loopback",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2": "reserved",
    "2001:db8::1": "reserved for documentation",
    "fd00:ec2::254": "a cloud's metadata service",
    "fd12:3456::1": "private",
    "fe80::1": "link-local",
    "fe80::1%eth0": "link-local",
    "fec0::1": "private",
    "ff02::1": "multicast",
}


@pytest.mark.parametrize(("address", "word"), FORBIDDEN.items(), ids=FORBIDDEN.keys())
def test_addresses_that_are_not_public_are_forbidden(address: str, word: str) -> None:
    """Each with the word that says why, whatever IPv6 dress an IPv4 address wears."""
    assert why_forbidden(ip_address(address), Reach()) == word


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "52.1.2.3", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_addresses_are_free(address: str) -> None:
    """The guard hinders nobody who calls the public internet."""
    assert why_forbidden(ip_address(address), Reach()) is None


@pytest.mark.parametrize("address", ["10.0.0.5", "::ffff:10.0.0.5"])
def test_the_operator_opens_a_network(address: str) -> None:
    """Only what the operator names; its neighbour stays closed."""
    reach = Reach(allow=(ip_network("10.0.0.5/32"),))

    assert why_forbidden(ip_address(address), reach) is None
    assert why_forbidden(ip_address("10.0.0.6"), reach) == "private"


@pytest.mark.parametrize(
    ("host", "port", "entry"),
    [
        ("api.example.com", 443, "api.example.com"),
        ("API.example.com.", 8443, "api.example.com"),
        ("a.b.example.com", 443, "*.example.com"),
        ("host", 8080, "host:8080"),
        ("::1", 9000, "[::1]:9000"),
        ("127.0.0.1", 9000, "127.0.0.1"),
        ("anything", 1, "*"),
    ],
)
def test_an_entry_covers_its_hosts(host: str, port: int, entry: str) -> None:
    """As it is written in the documentation of allowed_hosts."""
    (checked,) = check_allowed_hosts([entry])

    assert host_allowed(host, port, [checked])


@pytest.mark.parametrize(
    ("host", "port", "entry"),
    [
        ("example.com", 443, "*.example.com"),
        ("evilexample.com", 443, "*.example.com"),
        ("api.example.com.evil.org", 443, "api.example.com"),
        ("host", 80, "host:8080"),
        ("sub.api.example.com", 443, "api.example.com"),
    ],
)
def test_an_entry_covers_nothing_else(host: str, port: int, entry: str) -> None:
    """A look-alike, a parent, a child or another port is not the host."""
    assert not host_allowed(host, port, [entry])
    assert not host_allowed(host, port, [])


def test_entries_are_stored_in_one_form() -> None:
    """Lower case, ASCII, no trailing dot: so the comparison at run time is plain."""
    given = ["API.Example.COM.", "*.MÜNCHEN.de", "::1", "[::1]:80", "*:443"]

    assert check_allowed_hosts(given) == (
        "api.example.com",
        "*.xn--mnchen-3ya.de",
        "[::1]",
        "[::1]:80",
        "*:443",
    )


@pytest.mark.parametrize(
    "entry",
    [
        "https://api.example.com/v1",
        "",
        "a b",
        "host:0",
        "host:70000",
        "host:x",
        "a*.com",
        "*.",
        "u@h",
    ],
)
def test_an_entry_of_another_form_is_refused(entry: str) -> None:
    """The error points at the entry."""
    with pytest.raises(Invalid) as refused:
        check_allowed_hosts(["ok.com", entry])

    assert refused.value.problems[0].pointer == "/allowed_hosts/1"
