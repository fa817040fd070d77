"""Checks JSON that a guest made, before it goes into a frame that the engine reads.

Path:   run -> here; the same rules as the JavaScript prelude's `jsonText`
Never:  lets through what some reader of the stored text would choke on.
"""

import re
from typing import Final

import msgspec

DEPTH_MAX: Final = 200  # as in the JavaScript prelude
_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]')
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
    if text.count(b"[") + text.count(b"{") > DEPTH_MAX:
        _check_depth(text)
    try:
        msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError) as error:
        whole = _without_halves(decoded).encode()
        if whole == text or not _is_json(whole):
            raise NotJson(f"not JSON: {error}") from None
        return whole
    return text


def _is_json(text: bytes) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True


def _without_halves(text: str) -> str:
    """Replace escapes of half a surrogate pair, which msgspec refuses, by U+FFFD."""
    return _ESCAPE.sub(lambda found: "\ufffd" if found["half"] else found[0], text)


def _check_depth(text: bytes) -> None:
    depth = 0
    for token in _TOKEN.finditer(text):
        first = text[token.start()]
        if first in b"[{":
            depth += 1
            if depth > DEPTH_MAX:
                raise NotJson(f"nested deeper than {DEPTH_MAX} levels")
        elif first in b"]}":
            depth -= 1
