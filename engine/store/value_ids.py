"""Ids that senders give to their values, so that a value that is sent twice is stored once.

Path:   api.writes -> journal -> here, in the transaction that stores the values
        store.retention forgets old ones
"""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection

from engine.errors import EngineError
from engine.store.tables import value_ids
from engine.store.unique import insert_absent

Mark = tuple[str, str, int, str]
"""What names one value: device, key, time (NO_TIME when the sender gave none), the sender's id."""

NO_TIME: Final = -(2**63)  # no time that a value can have


class SeenBefore(EngineError):
    """Some values of a commit are there already: nothing of it was stored. Never leaves us."""

    code = "conflict"

    def __init__(self, marks: frozenset[Mark]) -> None:
        self.marks = marks
        super().__init__(f"{len(marks)} values were sent before")


def take_ids(connection: Connection, marks: Sequence[Mark], now_ms: int) -> None:
    """Note the ids of values that are about to be stored; no two of `marks` are equal.

    Raises:
        SeenBefore: says which of them were noted before.
    """
    # In their order: of two nodes that note the same ones, neither waits for the other in a circle.
    rows = [
        {"device_id": device_id, "key": key, "at_ms": at_ms, "value_id": value_id,
         "created_ms": now_ms}
        for device_id, key, at_ms, value_id in sorted(marks)
    ]  # fmt: skip
    new = insert_absent(connection, value_ids, rows)
    if len(new) < len(rows):
        raise SeenBefore(frozenset(marks).difference(new))
