"""What a project may use at most: the operator's defaults, and what a project has of its own.

Path:   settings, api.projects -> here -> fair_share, usage, rate_limits, intake
Never:  counts anything; 0 means without a limit.
"""

from typing import Final

import msgspec

from engine.settings import Settings


class Allowances(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Of one project; None: as the operator has set it for all. Stored as JSON."""

    concurrency: int | None = None  # runs in cells at a time, on each node
    queued: int | None = None  # runs that wait in the queue, on all nodes together
    cpu_seconds_per_minute: float | None = None  # on all nodes together
    cpu_seconds_per_month: float | None = None  # of a calendar month, UTC
    key_requests_per_minute: int | None = None  # of each API key, on each node
    device_requests_per_minute: int | None = None  # of each device, on each node


class Effective(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for one project. 0: without a limit."""

    concurrency: int
    queued: int
    cpu_seconds_per_minute: float
    cpu_seconds_per_month: float
    key_requests_per_minute: int
    device_requests_per_minute: int


FIELDS: Final = Allowances.__struct_fields__
_DECODER: Final = msgspec.json.Decoder(Allowances)


def read_allowances(text: str) -> Allowances:
    """Return what the store has of a project."""
    return _DECODER.decode(text)


def write_allowances(allowances: Allowances) -> str:
    return msgspec.json.encode(allowances).decode()


def defaults(settings: Settings) -> Effective:
    """Return what the operator allows every project that says nothing else."""
    return Effective(**{name: getattr(settings, f"project_{name}") for name in FIELDS})


def effective(own: Allowances, default: Effective) -> Effective:
    """Return what holds for a project with these of its own."""
    chosen = {
        name: getattr(default, name) if getattr(own, name) is None else getattr(own, name)
        for name in FIELDS
    }
    return Effective(**chosen)
