"""Idempotency keys of jobs (table `idempotency_keys`): each makes one job a day, on any node.

Path:   api.submissions -> claim_keys, as the change of the commit that makes the jobs
Never:  takes a key without its job: both are in one transaction.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, select, update

from engine.errors import EngineError
from engine.store.tables import idempotency_keys
from engine.store.unique import insert_absent

KEPT_MS: Final = 86_400_000
PREFIX: Final = "job "  # parts them from the keys of requests, none of which has a space
_rows: Final = idempotency_keys.c


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyUse:
    """A key, what is asked with it, and what is answered if it is new."""

    key: str
    request: str  # SHA-256, hex
    answer: bytes  # names the job; holds no secret, so it is not sealed


class KeysKnown(EngineError):
    """Some of the keys have made their jobs already, so nothing of the commit was stored."""

    def __init__(self, known: dict[str, KeyUse]) -> None:
        self.known = known
        super().__init__(f"{len(known)} keys are known")


def claim_keys(
    connection: Connection, project_id: str, uses: Collection[KeyUse], now_ms: int
) -> None:
    """Take all of these keys for a day.

    Of several who want one at the same time, on whatever nodes, one gets it; the others wait for
    that one's transaction, and are told what it made.

    Raises:
        KeysKnown: with what the known ones were used for.
    """
    rows = {
        use.key: {
            "project_id": project_id,
            "key": PREFIX + use.key,
            "request": use.request,
            "state": "answered",
            "node_id": None,
            "created_ms": now_ms,
            "status": 201,
            "answer": use.answer,
        }
        for use in uses
    }
    wanted = dict(sorted(rows.items()))  # in one order everywhere
    known: dict[str, KeyUse] = {}
    while wanted:  # again for one that went between the statements
        for _, key in insert_absent(connection, idempotency_keys, list(wanted.values())):
            del wanted[key.removeprefix(PREFIX)]
        for use in _used(connection, project_id, wanted, now_ms - KEPT_MS):
            known[use.key] = use
            del wanted[use.key]
        for key in tuple(wanted):
            again = (
                update(idempotency_keys)
                .where(_rows.project_id == project_id, _rows.key == PREFIX + key)
                .where(_rows.created_ms < now_ms - KEPT_MS)
            )
            if connection.execute(again.values(**wanted[key])).rowcount:
                del wanted[key]
    if known:
        raise KeysKnown(known)


def _used(
    connection: Connection, project_id: str, keys: Collection[str], since_ms: int
) -> list[KeyUse]:
    if not keys:
        return []
    query = select(_rows.key, _rows.request, _rows.answer).where(
        _rows.project_id == project_id,
        _rows.key.in_([PREFIX + key for key in keys]),
        _rows.created_ms >= since_ms,
    )
    return [
        KeyUse(key=row.key.removeprefix(PREFIX), request=row.request, answer=row.answer)
        for row in connection.execute(query)
    ]
