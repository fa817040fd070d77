"""Reads mail addresses as scripts write them: "a@b", "Name <a@b>", {email, name}, or a list.

Path:   connectors.sendgrid, connectors.mailchimp -> here
Never:  lets a line break through: in a mail's header it would begin another one.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from engine.errors import HostCallRefused

ADDRESS_CHARS_MAX: Final = 254  # RFC 5321, 4.5.3.1.3, without the angle brackets
TOGETHER_CHARS_MAX: Final = 500  # what keeps the order is a key of an index

_ADDRESS: Final = re.compile(r"""[^\s<>()\[\],;:"\\@]+@[^\s<>(),;:"\\@]+""")
_NAMED: Final = re.compile(r"\s*(.*?)\s*<\s*([^<>]*?)\s*>\s*", re.DOTALL)
_BREAKS: Final = re.compile(r"[\r\n\0]")


@dataclass(frozen=True, slots=True)
class Mailbox:
    email: str
    name: str | None = None


def mailboxes(value: Any, what: str) -> list[Mailbox]:
    """Return one mailbox or a list of them; `what` names the field in errors.

    Raises:
        HostCallRefused: one of them is none.
    """
    if isinstance(value, list):
        return [mailbox(item, f"{what}[{at}]") for at, item in enumerate(value)]
    return [mailbox(value, what)]


def mailbox(value: Any, what: str) -> Mailbox:
    """Return one mailbox.

    Raises:
        HostCallRefused: it is none.
    """
    if isinstance(value, dict):
        name = value.get("name")
        return Mailbox(
            _address(value.get("email"), f"{what}.email"),
            None if name is None else one_line(name, f"{what}.name"),
        )
    if not isinstance(value, str):
        raise HostCallRefused(f'{what} must be "a@b", "Name <a@b>" or {{email, name}}')
    named = _NAMED.fullmatch(value)
    if named is None:
        return Mailbox(_address(value.strip(), what))
    name = one_line(named[1], what)
    if name[:1] == name[-1:] == '"':
        name = name[1:-1]
    return Mailbox(_address(named[2], what), name or None)


def one_line(value: Any, what: str) -> str:
    """Return the text.

    Raises:
        HostCallRefused: it is none, or has more than one line.
    """
    if not isinstance(value, str):
        raise HostCallRefused(f"{what} must be a string")
    if _BREAKS.search(value):
        raise HostCallRefused(f"{what} must not have line breaks")
    return value


def together(addresses: Iterable[str]) -> str | None:
    """Return one name for all of them: equal for equal sets, and never too long for a key."""
    found = sorted({address.lower() for address in addresses})
    text = ",".join(found)
    if len(text) <= TOGETHER_CHARS_MAX:
        return text or None
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{found[0]} and {len(found) - 1} more, {digest}"


def _address(value: Any, what: str) -> str:
    if not isinstance(value, str) or _ADDRESS.fullmatch(value) is None:
        raise HostCallRefused(f"{what} is not a mail address")
    if len(value) > ADDRESS_CHARS_MAX:
        raise HostCallRefused(f"{what} has more than {ADDRESS_CHARS_MAX} characters")
    return value
