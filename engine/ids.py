"""Makes ids: a prefix that says what it is, and a UUIDv7 that sorts by time (`exe_0194...`)."""

from typing import Final

from uuid_utils import uuid7

PREFIXES: Final = frozenset(
    {"prj", "key", "prd", "dev", "fn", "ver", "dep", "trg", "evt", "exe", "dlv", "req"}
)


def new_id(prefix: str) -> str:
    """Return a new id, e.g. `evt_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f`; later ids sort after it."""
    return f"{prefix}_{uuid7().hex}"
