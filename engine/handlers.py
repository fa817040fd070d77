"""Which handler of a version a call means."""

from functools import lru_cache
from typing import Final

import msgspec

from engine.errors import Invalid

INVOKE_ORDER: Final = (
    "main", "default", "job", "fetch", "afterStore", "trigger", "scheduled", "decodeUplink",
    "beforeStore", "queue",
)  # fmt: skip
JOB_ORDER: Final = ("job", "queue", "main")  # what a job means; else as a call


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


def job_handler(handlers: tuple[str, ...], asked: str | None, pointer: str) -> str:
    """Return the handler of a job: the one asked for, or the first that is made for it.

    Raises:
        Invalid: as `asked_handler`.
    """
    if asked is None:
        return next((name for name in JOB_ORDER if name in handlers), None) or first_handler(
            handlers
        )
    return asked_handler(handlers, asked, pointer)


def handler_input(handler: str, payload: bytes) -> bytes:
    """Return what the handler gets for this payload: `fetch` gets a request with it."""
    if handler != "fetch":
        return payload
    return msgspec.json.encode(
        {
            "method": "POST",
            "url": "http://invoke/",
            "headers": [["content-type", "application/json"]],
            "body": payload.decode(),
            "body_base64": False,
        }
    )
