"""Takes credentials out of what a provider said, before anybody keeps or sees it.

Path:   outbox, engine.connections -> here, with each error
"""

import base64
import html
import json
import unicodedata
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote, quote_plus, urlsplit

CHARS_MIN: Final = 6  # what is shorter is too common a text to be one: a port, a region
SCRUBBED: Final = "[credential]"


def scrubbed(text: str, credentials: Any) -> str:
    """Return `text` with each text of `credentials` taken out.

    As it is, as in a URL, in JSON, in HTML, or within base64; also where the text was cut in it.
    """
    found = {form for one in _texts(credentials) for form in _forms(one)}
    for one in sorted(found, key=len, reverse=True):  # one may hold another
        text = text.replace(one, SCRUBBED)
    cuts = (
        length
        for one in found
        for length in range(min(len(one), len(text)), CHARS_MIN - 1, -1)
        if text.endswith(one[:length])
    )
    cut = max(cuts, default=0)
    return text[: len(text) - cut] + SCRUBBED if cut else text


def printable(text: str) -> str:
    """Return `text` in one line, without control characters: they could forge lines of a log."""
    kept = (" " if unicodedata.category(one) in ("Cc", "Zl", "Zp") else one for one in text)
    return "".join(kept)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if len(value) >= CHARS_MIN:
            yield value
            yield from _parts_of_url(value)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)


def _parts_of_url(text: str) -> Iterator[str]:
    """Yield what is secret in a URL that is a credential, and is quoted without its host."""
    if "://" not in text:
        return
    try:
        parts = urlsplit(text)
    except ValueError:
        return
    for part in (parts.path, parts.query, parts.username, parts.password):
        if part is not None and len(part) >= CHARS_MIN:
            yield part


def _forms(text: str) -> Iterator[str]:
    yield text
    for form in (quote(text, ""), quote(text), quote_plus(text)):
        yield form
        yield form.replace("%", "%25")
    yield json.dumps(text)[1:-1]
    yield json.dumps(text)[1:-1].replace("/", "\\/")
    yield html.escape(text)
    data = text.encode("utf-8", "surrogatepass")
    for before in range(3):  # it may stand anywhere in what was encoded: `user:password`
        plain = base64.b64encode(b"\0" * before + data).decode("ascii")
        # Characters at both ends hold bits of what stands beside it.
        begin, end = (before * 8 + 5) // 6, (before + len(data)) * 8 // 6
        yield plain[begin:end]
        yield plain[begin:end].translate(_URL_SAFE)


_URL_SAFE: Final = str.maketrans("+/", "-_")
