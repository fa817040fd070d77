"""Finds what has no room left, and counts what a project has and what would go.

Path:   retention -> `cut_id`, `cut_ms`; api.retention -> `usage`
Never:  holds one read for long: it counts some thousand rows at a time, newest first.
"""

import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Final

from engine.retention_rules import HOUR_MS, Keep, Kind
from engine.store import retention as store
from engine.store import retention_values as values
from engine.store.database import Database

CHUNK_ROWS: Final = 5_000  # 5 to 8 ms of a reader's time
DEVICES: Final = 100
UNITS_MS: Final = (HOUR_MS, 1_000, 1)  # how a point in time is closed in on
USAGE_S: Final = 2.0  # per kind; then it is said that there is more


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What there is of a kind, and what would go of it now."""

    rows: int = 0
    bytes: int = 0
    oldest_ms: int | None = None
    over_rows: int = 0
    over_bytes: int = 0
    complete: bool = True  # False: at least so much; counting more would take too long

    def plus(self, *, rows: int, size: int, oldest_ms: int, over: tuple[int, int]) -> "Usage":
        oldest = oldest_ms if self.oldest_ms is None else min(self.oldest_ms, oldest_ms)
        return Usage(
            rows=self.rows + rows,
            bytes=self.bytes + size,
            oldest_ms=oldest,
            over_rows=self.over_rows + over[0],
            over_bytes=self.over_bytes + over[1],
            complete=self.complete,
        )


async def cut_id(
    database: Database, project_id: str, kind: Kind, keep: Keep, *, until_s: float = math.inf
) -> str | None:
    """Return the newest row for which there is no room; it and all older ones go. None: all fit.

    Counted from the newest: rows that come meanwhile, or that another node deletes at the other
    end, change nothing of it, or leave a row more.
    """
    if not keep.is_by_size:
        return None
    rows_left, bytes_left, before = keep.rows, keep.bytes, None
    while time.monotonic() < until_s:
        found = await database.read(
            store.counted, kind.value, project_id, before_id=before, rows_max=CHUNK_ROWS
        )
        if found is None:
            return None
        if _is_over(found.rows, rows_left) or _is_over(found.bytes, bytes_left):
            return await database.read(
                store.cut_within,
                kind.value,
                project_id,
                before_id=before,
                rows_left=rows_left,
                bytes_left=bytes_left,
                rows_max=CHUNK_ROWS,
            )
        rows_left = None if rows_left is None else rows_left - found.rows
        bytes_left = None if bytes_left is None else bytes_left - found.bytes
        before = found.oldest_id
    return None


async def cut_ms(
    database: Database, project_id: str, keep: Keep, *, until_s: float = math.inf
) -> int | None:
    """Return the datetime before which values have no room; None: all fit.

    Values stand by device, so the point is closed in on: its hour, its second, its millisecond.
    Those of the newest millisecond stay, however many they are.
    """
    if not keep.is_by_size:
        return None
    rows_left, bytes_left = keep.rows, keep.bytes
    from_ms = to_ms = None
    kept = False
    for unit_ms in UNITS_MS:
        buckets = await _histogram(database, project_id, unit_ms, from_ms, to_ms, until_s)
        if buckets is None:
            return None
        for bucket in sorted(buckets.values(), key=lambda one: one.from_ms, reverse=True):
            if _is_over(bucket.rows, rows_left) or _is_over(bucket.bytes, bytes_left):
                from_ms, to_ms = bucket.from_ms, bucket.from_ms + unit_ms
                break
            kept = True
            rows_left = None if rows_left is None else rows_left - bucket.rows
            bytes_left = None if bytes_left is None else bytes_left - bucket.bytes
        else:
            return from_ms  # all of this span fit; in the first round: all there is
    return to_ms if kept else from_ms


async def usage(
    database: Database,
    project_id: str,
    kind: Kind,
    keep: Keep,
    now_ms: int,
    *,
    budget_s: float = USAGE_S,
) -> Usage:
    """Count what a project has of a kind, and what would go by `keep`.

    Args:
        database: where it is read.
        project_id: whose.
        kind: of what.
        keep: the limits.
        now_ms: from when ages count.
        budget_s: how long it may take; then what has been counted so far is returned as such.
    """
    until_s = time.monotonic() + budget_s
    before_ms = None if keep.age_ms is None else now_ms - keep.age_ms
    if kind is Kind.SCHEDULE_FIRES:
        old_ms = store.LAST_MS * -1 if before_ms is None else before_ms
        rows, old_rows, oldest_ms = await database.read(store.count_fires, project_id, old_ms)
        return Usage(rows=rows, oldest_ms=oldest_ms, over_rows=old_rows)
    if kind is Kind.VALUES:
        return await _usage_of_values(database, project_id, keep, before_ms, until_s)
    cut = await cut_id(database, project_id, kind, keep, until_s=until_s)
    total = Usage()
    async for found in _walk(database, project_id, kind, until_s, before_ms, above=cut):
        if found is None:
            return replace(total, complete=False)
        over = (found.over, found.over_bytes)
        total = total.plus(rows=found.rows, size=found.bytes, oldest_ms=found.oldest_ms, over=over)
    if cut is None:
        return total
    async for found in _walk(database, project_id, kind, until_s, before_ms, below=cut):
        if found is None:
            return replace(total, complete=False)
        total = total.plus(
            rows=found.rows,
            size=found.bytes,
            oldest_ms=found.oldest_ms,
            over=(found.rows, found.bytes),
        )
    return total


async def _walk(
    database: Database,
    project_id: str,
    kind: Kind,
    until_s: float,
    before_ms: int | None,
    *,
    above: str | None = None,
    below: str | None = None,
) -> AsyncIterator[store.Counted | None]:
    """Yield the rows of a kind, some at a time, newest first; None: the time is over.

    Only those with ids after `above`; only the row `below` and those with ids before it.
    """
    before = None if below is None else below + "~"  # sorts after it, and before the next id
    while time.monotonic() < until_s:
        found = await database.read(
            store.counted,
            kind.value,
            project_id,
            before_id=before,
            after_id=above,
            over_before_ms=before_ms,
            rows_max=CHUNK_ROWS,
        )
        if found is None:
            return
        yield found
        before = found.oldest_id
    yield None


async def _usage_of_values(
    database: Database, project_id: str, keep: Keep, before_ms: int | None, until_s: float
) -> Usage:
    cut = await cut_ms(database, project_id, keep, until_s=until_s)
    ends = [one for one in (before_ms, cut) if one is not None]
    total, after = Usage(), ""
    while True:
        if time.monotonic() > until_s:
            return replace(total, complete=False)
        ids = await database.read(values.devices_after, project_id, after, DEVICES)
        if not ids:
            return total
        after = ids[-1]
        buckets = await database.read(values.histogram, ids, unit_ms=HOUR_MS)
        over = await database.read(values.count_older, ids, max(ends)) if ends else (0, 0)
        if buckets:
            total = total.plus(
                rows=sum(one.rows for one in buckets),
                size=sum(one.bytes for one in buckets),
                oldest_ms=min(one.oldest_ms for one in buckets),
                over=over,
            )


async def _histogram(
    database: Database,
    project_id: str,
    unit_ms: int,
    from_ms: int | None,
    to_ms: int | None,
    until_s: float,
) -> dict[int, values.Bucket] | None:
    """Return the values of a project by spans of time; None: it took too long."""
    found: dict[int, values.Bucket] = {}
    after = ""
    while time.monotonic() < until_s:
        ids = await database.read(values.devices_after, project_id, after, DEVICES)
        if not ids:
            return found
        after = ids[-1]
        for one in await database.read(
            values.histogram, ids, unit_ms=unit_ms, from_ms=from_ms, to_ms=to_ms
        ):
            known = found.get(one.from_ms)
            if known is not None:
                found[one.from_ms] = replace(
                    known, rows=known.rows + one.rows, bytes=known.bytes + one.bytes
                )
            else:
                found[one.from_ms] = one
    return None


def _is_over(count: int, left: int | None) -> bool:
    return left is not None and count > left
