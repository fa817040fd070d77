"""Says which network addresses our requests may go to, and why not to the others.

Path:   egress -> here, for every address that a name resolved to
Never:  resolves a name; trusts `ipaddress.is_private` alone, whose table differs between Pythons.
"""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# First hit decides. Sources: IANA special-purpose registries for IPv4 and IPv6 (RFC 6890),
# and the metadata services of AWS, Azure, Google Cloud, Alibaba and Oracle.
_FORBIDDEN: Final[tuple[tuple[Network, str], ...]] = tuple(
    (ip_network(network), word)
    for network, word in (
        ("169.254.169.254/32", "a cloud's metadata service"),
        ("168.63.129.16/32", "a cloud's metadata service"),  # Azure's, on a public address
        ("100.100.100.200/32", "a cloud's metadata service"),
        ("192.0.0.192/32", "a cloud's metadata service"),
        ("fd00:ec2::254/128", "a cloud's metadata service"),
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

# IPv6 addresses that are an IPv4 address to the machine or to a gateway: network, bits after it.
_CARRIES_IPV4: Final[tuple[tuple[IPv6Network, int], ...]] = (
    (IPv6Network("::ffff:0:0/96"), 0),  # IPv4-mapped
    (IPv6Network("64:ff9b::/96"), 0),  # NAT64
    (IPv6Network("2002::/16"), 80),  # 6to4
)


def why_forbidden(address: Address, allow: Sequence[Network]) -> str | None:
    """Return one or two words that say what `address` is, or None when requests may go there.

    Args:
        address: where a connection would go.
        allow: networks that the operator opened although they are private.
    """
    if any(address in network for network in allow):
        return None
    carried = _carried(address)
    if carried is not None:
        return why_forbidden(carried, allow)
    for network, word in _FORBIDDEN:
        if address in network:
            return word
    return None if address.is_global else "reserved"


def _carried(address: Address) -> IPv4Address | None:
    if isinstance(address, IPv6Address):
        for network, shift in _CARRIES_IPV4:
            if address in network:
                return IPv4Address(int(address) >> shift & 0xFFFF_FFFF)
    return None
