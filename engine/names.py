"""Checks what people call things: short, and printable on one line in any language."""

import re
from typing import Final

from engine.errors import Invalid

NAME_CHARS_MAX: Final = 128
MESSAGE_CHARS_MAX: Final = 1_000
FUNCTION_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
VARIABLE_NAME: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}")


def check_name(name: str, pointer: str = "/name") -> None:
    """Refuse the name of a project, product, device or key that cannot be shown on one line."""
    if not 1 <= len(name) <= NAME_CHARS_MAX:
        raise Invalid(f"must have 1 to {NAME_CHARS_MAX} characters, has {len(name)}", pointer)
    if not name.isprintable() or name != name.strip():
        raise Invalid("must be printable characters without spaces around them", pointer)


def check_function_name(name: str) -> None:
    if not FUNCTION_NAME.fullmatch(name):
        raise Invalid(
            f"must be a letter, then up to 63 letters, digits, _ or -; got {name[:80]!r}", "/name"
        )


def check_message(message: str) -> None:
    """Refuse a deploy message that is long or holds control characters other than line breaks."""
    if len(message) > MESSAGE_CHARS_MAX:
        raise Invalid(
            f"must have at most {MESSAGE_CHARS_MAX} characters, has {len(message)}", "/message"
        )
    if not all(char.isprintable() or char in "\n\t" for char in message):
        raise Invalid("must be printable characters, line breaks and tabs", "/message")
