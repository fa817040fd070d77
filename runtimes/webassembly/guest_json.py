"""Checks JSON that a guest made, before it goes into a frame that the engine reads.

Path:   run -> here; the same rules as the JavaScript prelude's `jsonText`
Never:  lets through what some reader of the stored text would choke on.
"""

import re
from typing import Any, Final

import msgspec

DEPTH_MAX: Final = 200  # as in the JavaScript prelude
_CONTAINERS: Final = (dict, list)
_ESCAPE: Final = re.compile(
    r"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    r"|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)


class NotJson(ValueError):
    """The guest's: says what is wrong with its text."""


def checked_json(text: bytes) -> bytes:
    """Return `text` if it is JSON that every reader takes; half characters become U+FFFD.

    Raises:
        NotJson: it is not UTF-8, not JSON, or nested deeper than DEPTH_MAX.
    """
    try:
        decoded = text.decode()
    except UnicodeDecodeError as error:
        raise NotJson(f"not UTF-8: {error.reason} at byte {error.start}") from None
    try:
        value = msgspec.json.decode(text)
    except RecursionError:
        raise _too_deep() from None
    except msgspec.MsgspecError as error:
        whole = _without_halves(decoded).encode()
        if whole == text:
            raise NotJson(f"not JSON: {error}") from None
        return checked_json(whole)  # which has no halves left
    if type(value) in _CONTAINERS and text.count(b"[") + text.count(b"{") > DEPTH_MAX:
        _check_depth(value)
    return text


def _without_halves(text: str) -> str:
    """Replace escapes of half a surrogate pair, which msgspec refuses, by U+FFFD."""
    return _ESCAPE.sub(lambda found: "\ufffd" if found["half"] else found[0], text)


def _check_depth(value: Any) -> None:
    """Go down level by level: what is wide costs little, and nothing recurses."""
    level = [value]
    for _ in range(DEPTH_MAX):
        level = [
            child
            for parent in level
            for child in (parent.values() if type(parent) is dict else parent)
            if type(child) in _CONTAINERS
        ]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> NotJson:
    return NotJson(f"nested deeper than {DEPTH_MAX} levels")
