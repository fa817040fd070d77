"""Cuts a list into pages, newest first: an id says when its row was made, so it is the cursor.

Rows that are added while somebody pages through stand before the first page, never inside one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import Column, Select

T = TypeVar("T")

PAGE_ITEMS_MAX: Final = 200
PAGE_ITEMS: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Which part of a list is asked for: at most `limit` items older than the id `before`."""

    limit: int = PAGE_ITEMS
    before: str | None = None

    def __post_init__(self) -> None:
        assert 0 < self.limit <= PAGE_ITEMS_MAX, self


@dataclass(frozen=True, slots=True)
class Paged(Generic[T]):
    """One page; `next_cursor` is None on the last."""

    items: tuple[T, ...]
    next_cursor: str | None

    def map(self, change: Callable[[T], Any]) -> "Paged[Any]":
        return Paged(tuple(map(change, self.items)), self.next_cursor)


def page_of(query: Select[Any], id_column: Column[Any], page: Page) -> Select[Any]:
    """Order `query` newest first and cut it; one row more than asked tells whether more follow."""
    if page.before is not None:
        query = query.where(id_column < page.before)
    return query.order_by(id_column.desc()).limit(page.limit + 1)


def paged(items: Sequence[T], page: Page, cursor: Callable[[T], str]) -> Paged[T]:
    """Make the page from the rows that `page_of` selected."""
    if len(items) <= page.limit:
        return Paged(tuple(items), None)
    kept = tuple(items[: page.limit])
    return Paged(kept, cursor(kept[-1]))
