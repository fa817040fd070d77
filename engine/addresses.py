"""Says which network addresses our requests may go to, and why not to the others.

Path:   egress -> here, for every address that a name resolved to
Never:  resolves a name; trusts `ipaddress.is_private` alone, whose table differs between Pythons.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final

from engine.allowed_hosts import check_allowed_hosts
from engine.errors import Invalid

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

NAT64_LENGTHS: Final = (32, 40, 48, 56, 64, 96)  # of a prefix: RFC 6052, 2.2
CLOSED: Final = "closed by the operator"

_METADATA: Final = "a cloud's metadata service"
# First hit decides. Sources: IANA special-purpose registries for IPv4 and IPv6 (RFC 6890), and the
# metadata services of AWS, Azure, Google Cloud, Alibaba, Oracle, Tencent and Scaleway.
_FORBIDDEN: Final[tuple[tuple[Network, str], ...]] = tuple(
    (ip_network(network), word)
    for network, word in (
        ("169.254.169.254/32", _METADATA),
        ("169.254.170.2/32", _METADATA),  # AWS: credentials of containers
        ("169.254.170.23/32", _METADATA),
        ("169.254.0.23/32", _METADATA),  # Tencent
        ("169.254.42.42/32", _METADATA),  # Scaleway
        ("168.63.129.16/32", _METADATA),  # Azure's, on a public address
        ("100.100.100.200/32", _METADATA),
        ("192.0.0.192/32", _METADATA),
        ("fd00:ec2::254/128", _METADATA),
        ("fd00:ec2::23/128", _METADATA),
        ("fd20:ce::254/128", _METADATA),  # Google Cloud
        ("fd00:c1::a9fe:a9fe/128", _METADATA),  # Oracle
        ("fd00:42::42/128", _METADATA),  # Scaleway
        ("0.0.0.0/8", "unspecified"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared by a carrier (CGNAT)"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "reserved for documentation"),
        ("192.88.99.0/24", "reserved"),  # 6to4 relays, deprecated
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "reserved for benchmarks"),
        ("198.51.100.0/24", "reserved for documentation"),
        ("203.0.113.0/24", "reserved for documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("::/96", "reserved"),  # IPv4-compatible, deprecated
        ("64:ff9b:1::/48", "private"),  # NAT64 of a local network
        ("100::/64", "reserved"),  # discarded
        ("2001::/23", "reserved"),  # Teredo (carries an IPv4 address), ORCHID, benchmarks
        ("2001:db8::/32", "reserved for documentation"),
        ("3fff::/20", "reserved for documentation"),
        ("5f00::/16", "reserved"),  # segment routing
        ("fc00::/7", "private"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "private"),  # site-local, deprecated
        ("ff00::/8", "multicast"),
    )
)
_GLOBAL_IPV6: Final = IPv6Network("2000::/3")  # all that IANA has given out for the Internet

# IPv6 addresses that are an IPv4 address to the machine or to a gateway, and how many bits stand
# before it. The gateway of the last one may be of any length that RFC 6052 knows.
_CARRIES_IPV4: Final[tuple[tuple[IPv6Network, int], ...]] = (
    (IPv6Network("::ffff:0:0/96"), 96),  # IPv4-mapped
    (IPv6Network("64:ff9b::/96"), 96),  # NAT64
    (IPv6Network("2002::/16"), 16),  # 6to4
)
_LOCAL_NAT64: Final = IPv6Network("64:ff9b:1::/48")  # RFC 8215
_ISATAP: Final = frozenset({0x0000_5EFE, 0x0200_5EFE})  # RFC 5214: before the IPv4 address


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What the operator has opened and closed.

    `allow` opens addresses that are not public; a metadata service only where it is named alone,
    not by a network around it. `deny` and `deny_hosts` win over that. `nat64`: prefixes behind
    which a gateway of the operator's network sends to IPv4 addresses, which are then what counts.
    """

    allow: tuple[Network, ...] = ()
    deny: tuple[Network, ...] = ()
    deny_hosts: tuple[str, ...] = ()  # as `allowed_hosts` writes them
    nat64: tuple[IPv6Network, ...] = ()

    def __post_init__(self) -> None:
        assert all(prefix.prefixlen in NAT64_LENGTHS for prefix in self.nat64), self


def written(reach: Reach) -> dict[str, list[str]]:
    """Return it as JSON, for a process of ours that keeps to it; see `read_back`."""
    return {
        "allow": [str(network) for network in reach.allow],
        "deny": [str(network) for network in reach.deny],
        "deny_hosts": list(reach.deny_hosts),
        "nat64": [str(network) for network in reach.nat64],
    }


def read_back(given: Mapping[str, Sequence[str]]) -> Reach:
    """Return what `written` wrote."""
    return Reach(
        allow=tuple(ip_network(network) for network in given["allow"]),
        deny=tuple(ip_network(network) for network in given["deny"]),
        deny_hosts=tuple(given["deny_hosts"]),
        nat64=tuple(IPv6Network(network) for network in given["nat64"]),
    )


def split_denied(entries: Sequence[str]) -> tuple[tuple[Network, ...], tuple[str, ...]]:
    """Return the networks and the hosts among what an operator has closed.

    Raises:
        Invalid: an entry is neither an address, a network nor a host; or it is an address in
            another spelling, or with a port, which would close only what is spelled like it.
    """
    networks: list[Network] = []
    hosts: list[str] = []
    for entry in entries:
        try:
            networks.append(ip_network(entry))
        except ValueError:
            if "/" in entry:
                raise Invalid(f"{entry!r} is no network; write 10.0.0.0/8", "") from None
            if _looks_like_address(entry):
                raise Invalid(
                    f"{entry!r} is no host; write the address alone, without a port, as "
                    "10.0.0.1 or fd00::1: all its ports are closed, however it is reached",
                    "",
                ) from None
            hosts.append(entry)
    return tuple(networks), check_allowed_hosts(hosts, "")


def _looks_like_address(entry: str) -> bool:
    """Say whether this is a numeric address, if anything: `[...]`, or a last label of digits."""
    host = entry.partition(":")[0].rstrip(".")
    label = host.rpartition(".")[2].lower()
    return entry.startswith("[") or label.isdigit() or label.startswith("0x")


def refusal(address: Address, reach: Reach) -> str | None:
    """Return what to tell whoever wanted to reach `address`, or None when requests may go there."""
    word = why_forbidden(address, reach)
    if word is None:
        return None
    plain = str(address).partition("%")[0]
    if word == CLOSED:
        return f"address {plain} is {word}, with CLOUDCODE_EGRESS_DENY"
    return (
        f"address {plain} is {word}; the operator can allow it with "
        f"CLOUDCODE_EGRESS_ALLOW={plain}/{address.max_prefixlen}"
    )


def why_forbidden(address: Address, reach: Reach) -> str | None:
    """Return a few words that say what `address` is, or None when requests may go there."""
    meant = _meant(address, reach.nat64)
    for one in {address, *meant}:
        if any(one in network for network in reach.deny):
            return CLOSED
    if _named_alone(address, reach.allow):
        return None
    words = (_word(one, reach.allow) for one in meant)
    return next((word for word in words if word is not None), None)


def _meant(address: Address, nat64: Sequence[IPv6Network]) -> tuple[Address, ...]:
    """Return the addresses that a connection to this one may reach: itself, or what it carries."""
    if not isinstance(address, IPv6Address):
        return (address,)
    for prefix in nat64:
        if address in prefix:
            return (_embedded(address, prefix.prefixlen),)
    for network, length in _CARRIES_IPV4:
        if address in network:
            return (_embedded(address, length),)
    if address in _LOCAL_NAT64:
        lengths = (length for length in NAT64_LENGTHS if length >= _LOCAL_NAT64.prefixlen)
        return (address, *(_embedded(address, length) for length in lengths))
    if int(address) >> 32 & 0xFFFF_FFFF in _ISATAP:
        return (address, _embedded(address, 96))
    return (address,)


def _embedded(address: IPv6Address, length: int) -> IPv4Address:
    """Return the IPv4 address after the first `length` bits; RFC 6052 leaves bits 64 to 71 out."""
    octets = address.packed
    if length <= 64:  # noqa: PLR2004 - see above
        octets = octets[:8] + octets[9:]
    return IPv4Address(octets[length // 8 : length // 8 + 4])


def _word(address: Address, allow: Sequence[Network]) -> str | None:
    word = _known_as(address)
    if word == _METADATA:
        return None if _named_alone(address, allow) else word
    return None if any(address in network for network in allow) else word


def _known_as(address: Address) -> str | None:
    for network, word in _FORBIDDEN:
        if address in network:
            return word
    if isinstance(address, IPv6Address) and address not in _GLOBAL_IPV6:
        return "reserved"
    return None if address.is_global else "reserved"


def _named_alone(address: Address, allow: Sequence[Network]) -> bool:
    return any(
        network.prefixlen == network.max_prefixlen and address in network for network in allow
    )
