"""Names what a run wants to be sent, so that wanting it again is not another wish.

Path:   hostcalls.connections -> `delivery_id`; commit, events, batches -> `origin_*` of a run
Never:  takes time or chance into a name: a run that is made once more gives the same names.

A run's `origin` is the id of the first run that was made for its cause, or what a run below it got
from `origin_*`. Retries, replays and redriven dead letters keep it, so the same message of the
same place has the same id, which is the primary key of `deliveries`: it is sent once.
"""

from collections.abc import Iterable
from hashlib import sha256
from itertools import count
from typing import Any

import msgspec

from engine.run import DeliveryEffect, Run


def origin_of(run: Run) -> str:
    """Return what stays the same of a run when it is made once more."""
    return run.origin or run.root_id


def origin_below(origin: str, effect: int) -> str:
    """Return the origin of what write or call number `effect` (from 0) of a run causes."""
    return _derived("via", origin, str(effect))


def origin_through(origin: str, trigger_id: str) -> str:
    """Return the origin of the run that a write of this origin causes by one of its triggers."""
    return _derived("via", origin, trigger_id)


def origin_together(messages: Iterable[Run]) -> str:
    """Return the origin of a batch: the same whenever the same messages come together."""
    first, *others = sorted(map(origin_of, messages))
    return _derived("via", first, *others) if others else first


def delivery_id(run: Run, connection: str, action: str, message: dict[str, Any]) -> str:
    """Return the id of a message: of its origin, function, connection, content, and which it is.

    A run may want the same message twice (two lamps, one text): the second one gets its own id.
    """
    known = {effect.id for effect in run.effects if isinstance(effect, DeliveryEffect)}
    content = msgspec.json.encode(message, order="sorted").decode()
    for nth in count():
        place = (run.version.function_id, connection, action, content, str(nth))
        name = _derived("dlv", origin_of(run), *place)
        if name not in known:
            return name
    raise AssertionError


def _derived(prefix: str, origin: str, *parts: str) -> str:
    """Return an id that looks like those of `engine.ids`, with the time that is in `origin`."""
    told = "".join(f"{len(part)}:{part}" for part in (origin, *parts))
    digest = sha256(told.encode()).hexdigest()
    return f"{prefix}_{origin[-32:-20]}7{digest[:3]}8{digest[3:18]}"
