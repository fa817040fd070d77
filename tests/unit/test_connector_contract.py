"""What all connectors share: how an answer of HTTP is read, and what a connection may be."""

import pytest

from engine.connectors import CONNECTORS
from engine.connectors.contract import (
    ERROR_CHARS_MAX,
    Refused,
    Retry,
    check_connection,
    check_url,
    exchange,
    judged,
    retry_after_ms,
    said,
)
from engine.egress import Egress, Response
from engine.errors import Invalid

NOW = 1_700_000_000_500


def response(status: int, body: bytes = b"because", **headers: str) -> Response:
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Response(status=status, reason="A Reason", headers=named, body=body)


@pytest.mark.parametrize(
    ("value", "wait_ms"),
    [
        ("0", 0),
        ("7", 7_000),
        (" 7 ", 7_000),
        ("9" * 50, 999_999_999_000),
        ("Tue, 14 Nov 2023 22:13:25 GMT", 4_500),
        ("Tue, 14 Nov 2023 22:13:25", 4_500),
        ("Tue, 14 Nov 2000 22:13:25 GMT", 0),
        ("-1", None),
        ("\u0667", None),  # a digit, but not of HTTP
        ("soon", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_is_read_with_care(value: str | None, wait_ms: int | None) -> None:
    """It comes from outside: seconds, or a date of HTTP."""
    assert retry_after_ms(value, NOW) == wait_ms


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (200, Response),
        (204, Response),
        (299, Response),
        (301, Refused),
        (304, Refused),
        (400, Refused),
        (401, Refused),
        (404, Refused),
        (410, Refused),
        (408, Retry),
        (409, Retry),
        (425, Retry),
        (429, Retry),
        (500, Retry),
        (503, Retry),
        (599, Retry),
    ],
)
def test_a_status_means_the_same_everywhere(status: int, expected: type) -> None:
    """What another attempt may heal, and what it will not."""
    assert type(judged(response(status), NOW)) is expected


def test_a_wish_of_the_provider_is_kept() -> None:
    """Of a 429 and of a 503 alike."""
    answers = [judged(response(status, retry_after="30"), NOW) for status in (429, 503)]

    assert answers == [Retry(30_000, status, f"HTTP {status}: because") for status in (429, 503)]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "HTTP 400: A Reason"),
        (b"\n  first \nsecond", "HTTP 400: first"),
        (b"\xff\xfe", "HTTP 400: \ufffd\ufffd"),
    ],
)
def test_what_a_provider_says_is_a_line(body: bytes, text: str) -> None:
    """For people, whatever bytes they were."""
    assert said(response(400, body)) == text


def test_what_a_provider_says_is_short() -> None:
    """A page of HTML is not an error's text."""
    answer = judged(response(500, b"x" * 10_000), NOW)

    assert isinstance(answer, Retry)
    assert len(answer.error) == ERROR_CHARS_MAX


@pytest.mark.parametrize(
    "url",
    ["", "h", "//h/x", "ftp://h/", "https://", "http://u:p@h/", "https://h/" + "x" * 2_048, 5],
)
def test_what_is_no_url_is_refused(url: object) -> None:
    """With the pointer, and without the URL: it may be a credential."""
    with pytest.raises(Invalid) as refused:
        check_url(url, "/credentials/url")

    assert refused.value.problems[0].pointer == "/credentials/url"
    assert str(url) not in str(refused.value) or url in ("", "h")


async def test_no_answer_is_an_answer() -> None:
    """A closed port is tried again, an address inside is not; neither raises."""
    egress = Egress(())
    answers = [
        await exchange(egress, "POST", url, [], b"", timeout_ms=1_000)
        for url in ("http://127.0.0.1:8/", "http://localhost:8/", "ftp://example.com/")
    ]
    await egress.close()

    assert [type(answer) for answer in answers] == [Refused] * 3


@pytest.mark.parametrize("kind", sorted(CONNECTORS))
def test_every_connector_says_what_it_is(kind: str) -> None:
    """Its name, its actions, and waits that only grow."""
    connector = CONNECTORS[kind]

    assert connector.kind == kind
    assert connector.title
    assert connector.actions[0] == "send"
    assert len(set(connector.actions)) == len(connector.actions)
    assert list(connector.habits.waits_s) == sorted(connector.habits.waits_s)


@pytest.mark.parametrize("kind", sorted(CONNECTORS))
def test_an_unknown_field_is_named_with_those_that_are_known(kind: str) -> None:
    """In credentials and in settings."""
    with pytest.raises(Invalid, match="known: "):
        check_connection(CONNECTORS[kind], {"nonsense": 1}, {})


@pytest.mark.parametrize("end", ["?tenant=1", "?", "#f", "/p?x=1#f"])
def test_a_base_url_ends_with_its_path(end: str) -> None:
    """What is put behind it would become a part of the query."""
    token = {"token": "xoxb-12345678-abcdefgh"}
    check_connection(CONNECTORS["slack"], token, {"base_url": "https://proxy.example/p/"})

    with pytest.raises(Invalid) as refused:
        check_connection(CONNECTORS["slack"], token, {"base_url": f"https://proxy.example{end}"})

    assert refused.value.problems[0].pointer == "/settings/base_url"
