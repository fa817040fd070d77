"""Reads `allowed_hosts` of a function version: which hosts its code may reach.

Path:   control plane -> `check_allowed_hosts`; hostcalls.fetch -> `host_allowed`, before any DNS
Never:  resolves a name. Where the name leads to is checked in `egress`.

An entry is `api.example.com` (any port), `host:8080` (that port), `*.example.com` (every name below
it, not example.com itself) or `*`. No entry: no network.
"""

from collections.abc import Sequence
from typing import Final

import httpx

from engine.errors import Invalid

ENTRIES_MAX: Final = 64
ENTRY_CHARS_MAX: Final = 260  # a DNS name of 253, a colon and a port
PORT_MAX: Final = 65_535
# Ports where a server of another protocol could take an HTTP request for its own commands.
# Source: Fetch standard, 2.9 "Port blocking".
PORTS_OF_OTHERS: Final = frozenset(
    {
        0, 1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95,
        101, 102, 103, 104, 109, 110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179,
        389, 427, 465, 512, 513, 514, 515, 526, 530, 531, 532, 540, 548, 554, 556, 563, 587, 601,
        636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566,
        6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080,
    }
)  # fmt: skip


def check_allowed_hosts(entries: Sequence[str], pointer: str = "/allowed_hosts") -> tuple[str, ...]:
    """Return the entries in lower case and ASCII.

    Raises:
        Invalid: names the entry and how to write it.
    """
    if len(entries) > ENTRIES_MAX:
        raise Invalid(f"{len(entries)} entries; at most {ENTRIES_MAX} are allowed", pointer)
    return tuple(_checked(entry, f"{pointer}/{at}") for at, entry in enumerate(entries))


def host_allowed(host: str, port: int, entries: Sequence[str]) -> bool:
    """Return whether `host` (ASCII, as in the URL) and `port` are covered by one of `entries`."""
    return any(_covers(entry, host, port) for entry in entries)


def port_named(host: str, port: int, entries: Sequence[str]) -> bool:
    """Return whether an entry that covers `host` names this very port."""
    return any(_covers(entry, host, port) for entry in entries if _split(entry)[1] is not None)


def _covers(entry: str, host: str, port: int) -> bool:
    host = host.lower().rstrip(".")
    pattern, only_port = _split(entry.lower())
    if only_port is not None and only_port != str(port):
        return False
    if pattern in ("*", host):
        return True
    return pattern.startswith("*.") and host.endswith(pattern[1:]) and len(host) >= len(pattern)


def _checked(entry: str, pointer: str) -> str:
    if "://" in entry or "/" in entry:
        host = entry.partition("://")[2].partition("/")[0] or entry.partition("/")[0]
        raise Invalid(f"{entry!r} is a URL; write only its host: {host!r}", pointer)
    pattern, port = _split(entry)
    name = pattern.removeprefix("*.")
    if pattern != "*" and not _is_host(name):
        raise Invalid(
            f"{entry!r} is not a host; write api.example.com, host:8080, *.example.com or *",
            pointer,
        )
    if port is not None and not (port.isascii() and port.isdigit() and 0 < int(port) <= PORT_MAX):
        raise Invalid(f"{entry!r}: the port must be 1..{PORT_MAX}", pointer)
    if pattern != "*":
        written = _ascii(name)
        pattern = pattern.replace(name, f"[{written}]" if ":" in written else written)
    return pattern if port is None else f"{pattern}:{int(port)}"


def _is_host(name: str) -> bool:
    if not name or len(name) > ENTRY_CHARS_MAX or any(sign in name for sign in "*@?#%[] \\"):
        return False
    try:
        return bool(_ascii(name))
    except (httpx.InvalidURL, ValueError):
        return False


def _ascii(name: str) -> str:
    host = f"[{name}]" if ":" in name else name
    return httpx.URL(f"http://{host}/").raw_host.decode("ascii").rstrip(".")


def _split(entry: str) -> tuple[str, str | None]:
    """Return the host (IPv6 without its brackets) and the port, if there is one."""
    if entry.startswith("["):
        host, _, rest = entry[1:].partition("]")
        return host, rest[1:] if rest.startswith(":") else None
    if entry.count(":") == 1:
        host, _, port = entry.partition(":")
        return host, port
    return entry, None
