"""Which handler of a version a call means."""

from functools import lru_cache
from typing import Final

from engine.errors import Invalid

INVOKE_ORDER: Final = (
    "main", "default", "job", "fetch", "afterStore", "trigger", "scheduled", "decodeUplink",
    "beforeStore", "queue",
)  # fmt: skip


def asked_handler(handlers: tuple[str, ...], asked: str | None, pointer: str) -> str:
    """Return the handler `asked` for, or the first one.

    Raises:
        Invalid: the version has no such handler; points at `pointer`.
    """
    if asked is None:
        return first_handler(handlers)
    if asked not in handlers:
        known = ", ".join(handlers)
        raise Invalid(f"there is no handler {asked[:80]!r}; this version has {known}", pointer)
    return asked


@lru_cache(maxsize=1024)
def first_handler(handlers: tuple[str, ...]) -> str:
    """Return the one that a call means when it names none."""
    return next(name for name in INVOKE_ORDER if name in handlers)
