"""What a WebAssembly guest gives back, and what its JSON has to be like."""

import base64
import json
from typing import Any

import pytest

from runtimes.webassembly.guest_json import DEPTH_MAX, NotJson, checked_json
from runtimes.webassembly.results import BadResult, Io, input_of, result_of


@pytest.mark.parametrize(
    "text",
    [b"null", b"0", b' {"a": [1, 2.5, "x"]}\n', b'"\\ud83d\\ude00"', '"ü 😀"'.encode(), b'"[[["',
     b"[" * DEPTH_MAX + b"]" * DEPTH_MAX, b"123456789012345678901234567890",
     json.dumps(["{" * 300, '\\"[' * 300]).encode()],
)  # fmt: skip
def test_json_is_taken_as_it_is(text: bytes) -> None:
    """Not one byte of good JSON is changed."""
    assert checked_json(text) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "not JSON"),
        (b"NaN", "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b'{"a": 1', "not JSON"),
        (b"1 2", "not JSON"),
        (b"1e999", "out of range"),
        (b'"\xff"', "not UTF-8: invalid start byte at byte 1"),
        (b"[" * (DEPTH_MAX + 1) + b"]" * (DEPTH_MAX + 1), "nested deeper than 200 levels"),
        (b'{"a":' * 100_000, "nested deeper than 200 levels"),
        (b'"\\\\ud800', "not JSON"),
    ],
)
def test_what_is_no_json_is_refused(text: bytes, why: str) -> None:
    """It says why, and how far it came."""
    with pytest.raises(NotJson, match=why):
        checked_json(text)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (b'"a\\ud800b"', "a\ufffdb"),
        (b'"\\udc00\\ud83d\\ude00"', "\ufffd😀"),
        (b'["\\ud800", "\\\\ud800"]', ["\ufffd", "\\ud800"]),
    ],
)
def test_half_characters_are_replaced(text: bytes, clean: Any) -> None:
    """Nothing could store them; what is written as `\\\\ud800` is text, and stays."""
    assert json.loads(checked_json(text)) == clean


@pytest.mark.parametrize(
    ("data", "io", "strict", "result"),
    [
        (b'{"a":1}\n', Io.JSON, False, {"a": 1}),
        (b"", Io.JSON, True, None),
        (b" \n", Io.JSON, False, None),
        (b"hello\n", Io.JSON, False, "hello"),
        (b"hello\n", Io.TEXT, False, "hello\n"),
        (b'{"a":1}', Io.TEXT, True, '{"a":1}'),
        (b"", Io.TEXT, True, ""),
        (b"\x89PNG\xff", Io.JSON, False, {"base64": base64.b64encode(b"\x89PNG\xff").decode()}),
        (b"\xff", Io.TEXT, True, {"base64": "/w=="}),
    ],
)
def test_results(data: bytes, io: Io, *, strict: bool, result: Any) -> None:
    """JSON is itself, text is a string, anything else is base64."""
    assert json.loads(result_of(data, io, "default", strict=strict)) == result


def test_a_core_function_has_to_return_json() -> None:
    """Text by mistake is told, with the way to ask for it."""
    with pytest.raises(BadResult, match='"io": "text"'):
        result_of(b"hello", Io.JSON, "default", strict=True)


@pytest.mark.parametrize(
    ("data", "response"),
    [
        (b'{"status": 201, "headers": {"x-a": "b"}, "body": "hi"}',
         {"status": 201, "headers": [["x-a", "b"]], "body": "hi", "body_base64": False}),
        (b'{"status": 200, "headers": [["a", "1"], ["a", "2"]], "body": "/w==","body_base64":true}',
         {"status": 200, "headers": [["a", "1"], ["a", "2"]], "body": "/w==", "body_base64": True}),
        (b'{"status": 200, "body": {"n": 1}}',
         {"status": 200, "headers": [["content-type", "application/json"]], "body": '{"n":1}',
          "body_base64": False}),
        (b'{"status": 204}',
         {"status": 204, "headers": [], "body": None, "body_base64": False}),
        (b"[1]",
         {"status": 200, "headers": [["content-type", "application/json"]], "body": "[1]",
          "body_base64": False}),
        (b"plain\n",
         {"status": 200, "headers": [["content-type", "text/plain;charset=utf-8"]],
          "body": "plain\n", "body_base64": False}),
        (b"\xff",
         {"status": 200, "headers": [["content-type", "application/octet-stream"]],
          "body": "/w==", "body_base64": True}),
    ],
)  # fmt: skip
def test_responses_of_a_fetch_handler(data: bytes, response: dict[str, Any]) -> None:
    """An object with a status is the response; anything else is its body."""
    assert json.loads(result_of(data, Io.JSON, "fetch", strict=False)) == response


@pytest.mark.parametrize("headers", ["x", 1, [1], [["a"]], {"a": 1}, [["a", None]]])
def test_headers_that_are_none_are_told(headers: Any) -> None:
    """A response with nonsense for headers fails its run, and not the cell."""
    data = json.dumps({"status": 200, "headers": headers}).encode()

    with pytest.raises(BadResult, match="headers"):
        result_of(data, Io.JSON, "fetch", strict=True)


@pytest.mark.parametrize(
    ("text", "io", "handler", "given"),
    [
        ({"a": 1}, Io.JSON, "default", b'{"a": 1}'),
        ("<svg/>", Io.JSON, "default", b'"<svg/>"'),
        ("<svg/>ü", Io.TEXT, "default", "<svg/>ü".encode()),
        ({"a": 1}, Io.TEXT, "default", b'{"a": 1}'),
        ({"method": "POST", "body": "x=1"}, Io.TEXT, "fetch", b"x=1"),
        ({"body": "/w==", "body_base64": True}, Io.TEXT, "fetch", b"\xff"),
        ({"method": "GET", "body": None}, Io.TEXT, "fetch", b""),
        (None, Io.TEXT, "default", b""),
        (None, Io.JSON, "default", b"null"),
        ({"base64": "/w=="}, Io.TEXT, "default", b"\xff"),
        ({"base64": "no base64"}, Io.TEXT, "default", b'{"base64": "no base64"}'),
        ({"base64": "/w==", "a": 1}, Io.TEXT, "default", b'{"base64": "/w==", "a": 1}'),
    ],
)
def test_inputs(text: Any, io: Io, handler: str, given: bytes) -> None:
    """JSON as it is; with `io` text a string's bare text, and of a request its body."""
    raw = json.dumps(text, ensure_ascii=False).encode()

    assert input_of(raw, io, handler) == given
