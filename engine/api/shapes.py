"""What bodies and lists have in common."""

import re
from typing import Annotated, Any, Final, Generic, TypeVar

from fastapi import Depends, Query
from pydantic import BaseModel, ConfigDict

from engine.errors import Invalid
from engine.store.pages import PAGE_ITEMS, PAGE_ITEMS_MAX, Page

T = TypeVar("T")

CURSOR: Final = re.compile(r"[a-z]{2,4}_[0-9a-f]{32}")
CURSOR_CHARS_MAX: Final = 1_000


class Body(BaseModel):
    """A request's body: a field that is unknown, or of another type, is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Shown(BaseModel):
    """A response's body."""

    model_config = ConfigDict(frozen=True)


class Listed(Shown, Generic[T]):
    """One page of a list; `next_cursor` is null on the last."""

    items: list[T]
    next_cursor: str | None = None


def example(value: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [value]})


Limit = Annotated[int, Query(ge=1, le=PAGE_ITEMS_MAX, description="Most items on the page.")]
Cursor = Annotated[
    str | None,
    Query(max_length=CURSOR_CHARS_MAX, description="`next_cursor` of the page before."),
]


async def _page(limit: Limit = PAGE_ITEMS, cursor: Cursor = None) -> Page:
    if cursor is not None and not CURSOR.fullmatch(cursor):
        raise Invalid("is no cursor of this list; take next_cursor as it is", "?cursor")
    return Page(limit=limit, before=cursor)


PageAsked = Annotated[Page, Depends(_page)]
