"""What is known of how much waits, when nobody has counted it a moment ago."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from engine.allowances import FIELDS, Effective
from engine.errors import QuotaExceeded
from engine.queue_room import FEW, QueueRoom

MOST = 1_000
ALLOWED = replace(Effective(**dict.fromkeys(FIELDS, 0)), queued=MOST)


class Table:
    """The queue: answers how many rows of which project it has."""

    def __init__(self, **rows: int) -> None:
        self.rows = rows
        self.counted: list[set[str]] = []

    async def read(self, _query: Callable[..., Any], asked: dict[str, int]) -> Counter[str]:
        self.counted.append(set(asked))
        await asyncio.sleep(0)
        return Counter({project_id: self.rows[project_id] for project_id in asked})


def room_of(table: Any) -> QueueRoom:
    return QueueRoom(table, lambda _: ALLOWED, refused=Counter())


async def test_a_count_for_one_project_does_not_forget_another() -> None:
    """It has room for half as much again, and not for twice."""
    room = room_of(Table(a=499, b=0))
    await room.need("a", FEW + 1)
    await room.need("b", FEW + 1)

    assert room.fits("a", 501)
    assert not room.fits("a", 502)


async def test_what_is_added_since_is_known_though_others_are_counted_meanwhile() -> None:
    """Only a count of its own rows knows of them."""
    table = Table(a=499, b=0, c=0)
    room = room_of(table)
    for project_id in ("a", "b"):
        await room.need(project_id, FEW + 1)
    room.changed("a", 300)
    await room.need("c", FEW + 1)

    assert table.counted[-1] == {"b", "c"}
    assert not room.fits("a", 202)


async def test_of_a_project_that_nobody_has_counted_only_a_few_rows_are_taken_unseen() -> None:
    """A node that has just begun knows nothing, and its queue may be full."""
    table = Table(full=MOST)
    room = room_of(table)

    unseen = room.fits("full", FEW)
    with pytest.raises(QuotaExceeded):
        await room.need("full", FEW + 1)

    assert unseen
    assert {"full"} in table.counted
    assert not room.fits("full", 1)


async def test_who_comes_during_a_count_is_counted_after_it() -> None:
    """The count under way is of others."""
    table = Table(a=0, full=MOST)
    room = room_of(table)

    first = asyncio.create_task(room.need("a", FEW + 1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    with pytest.raises(QuotaExceeded):
        await room.need("full", FEW + 1)

    await first
    assert table.counted[0] == {"a"}
    assert "full" in table.counted[1]


async def test_a_count_that_fails_in_whatever_way_is_made_again() -> None:
    """Until then the numbers of before have to do; nobody pays for it with an error."""
    table = Table()  # a KeyError for everybody
    room = room_of(table)
    await room.need("a", FEW + 1)
    table.rows["a"] = MOST

    with pytest.raises(QuotaExceeded):
        await room.need("a", FEW + 1)
