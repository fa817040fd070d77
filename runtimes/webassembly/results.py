"""Turns what a guest gave back into the JSON of its result; a fetch handler's into a response.

Path:   program -> here -> the DONE message
Never:  lets through text that is not JSON.
"""

import base64
from contextlib import suppress
from enum import StrEnum
from typing import Any, Final

import msgspec

from runtimes.webassembly.guest_json import NotJson, checked_json

_encode: Final = msgspec.json.encode
_JSON_TYPE: Final = "application/json"


class Io(StrEnum):
    """How a version takes its input and gives its result."""

    JSON = "json"
    TEXT = "text"


class BadResult(Exception):
    """The guest's: its result is not what its handler has to give."""


class _Binary(msgspec.Struct, forbid_unknown_fields=True):
    base64: str


class _Request(msgspec.Struct):
    body: str | None = None
    body_base64: bool = False


def input_of(text: bytes, io: Io, handler: str) -> bytes:
    """Return what the guest gets: the JSON as it is.

    With TEXT: a JSON string's bare text, nothing for null, the bytes of {"base64": "..."}, and of
    a request its body, as a CGI program would.
    """
    if io is Io.JSON:
        return text
    if handler == "fetch":
        request = msgspec.json.decode(text, type=_Request)
        body = request.body or ""
        return base64.b64decode(body) if request.body_base64 else body.encode()
    if text.startswith(b'"'):
        return msgspec.json.decode(text, type=str).encode()
    return b"" if text == b"null" else _bytes_of(text)


def _bytes_of(text: bytes) -> bytes:
    """Return what `{"base64": "..."}` stands for, as results have it; other JSON as it is."""
    if text.startswith(b"{"):
        with suppress(msgspec.MsgspecError, ValueError):
            return base64.b64decode(msgspec.json.decode(text, type=_Binary).base64, validate=True)
    return text


def result_of(data: bytes, io: Io, handler: str, *, strict: bool) -> bytes:
    """Return the run's result as JSON.

    Args:
        data: what the guest gave back, of any content.
        io: TEXT takes it as text, whatever it looks like.
        handler: of `fetch` the result is a response, as the prelude of JavaScript makes it.
        strict: only JSON will do, where `io` asks for JSON: the core ABI.

    Raises:
        BadResult: says what is wrong with it.
    """
    text, media_type = _json_and_type(data, io, strict=strict)
    return text if handler != "fetch" else _response(data, text, media_type)


def _json_and_type(data: bytes, io: Io, *, strict: bool) -> tuple[bytes, str]:
    if io is Io.JSON:
        if not data or data.isspace():
            return b"null", _JSON_TYPE
        try:
            return checked_json(data), _JSON_TYPE
        except NotJson as error:
            if strict:
                message = f'the result is {error}; for plain text set "io": "text"'
                raise BadResult(message) from None
            data = data.removesuffix(b"\n")
    try:
        return _encode(data.decode()), "text/plain;charset=utf-8"
    except UnicodeDecodeError:
        return _encode({"base64": _base64(data)}), "application/octet-stream"


def _response(data: bytes, text: bytes, media_type: str) -> bytes:
    value = msgspec.json.decode(text) if media_type == _JSON_TYPE else None
    if isinstance(value, dict) and isinstance(value.get("status"), int):
        return _own_response(value)
    headers = [("content-type", media_type)]
    if media_type == "application/octet-stream":
        return _wire(200, headers, _base64(data), body_base64=True)
    body = (text if media_type == _JSON_TYPE else data).decode()
    return _wire(200, headers, body, body_base64=False)


def _own_response(value: dict[str, Any]) -> bytes:
    asked, body = value.get("headers") or [], value.get("body")
    try:
        pairs = asked.items() if isinstance(asked, dict) else asked
        headers = [(_word(name), _word(content)) for name, content in pairs]
    except (TypeError, ValueError):
        raise BadResult(
            "the headers of a response are an object of texts, or a list of [name, text]"
        ) from None
    if body is not None and not isinstance(body, str):
        body = _encode(body).decode()
        if all(name.lower() != "content-type" for name, _ in headers):
            headers.append(("content-type", _JSON_TYPE))
    return _wire(value["status"], headers, body, body_base64=value.get("body_base64") is True)


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(type(value))
    return value


def _wire(
    status: int, headers: list[tuple[str, str]], body: str | None, *, body_base64: bool
) -> bytes:
    return _encode({"status": status, "headers": headers, "body": body, "body_base64": body_base64})


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
