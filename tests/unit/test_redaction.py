"""What is hidden of secrets, in which forms, and what stays as it was."""

import base64
import json
import random
import time
from urllib.parse import quote

import msgspec
import pytest

from engine.redaction import LINE_CUT, Redaction, redaction_of
from runtimes.contract import GuestError

VALUE = 'p"w\\\n<ü>&= 1/9'
PLAIN = "sk_live_51HqLyjWDarjtT1zdp7dc"


def of(**secrets: str) -> Redaction:
    found = redaction_of(secrets)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "form",
    [
        VALUE,
        json.dumps(VALUE)[1:-1],
        json.dumps(VALUE, ensure_ascii=False)[1:-1],
        json.dumps(json.dumps(VALUE, ensure_ascii=False), ensure_ascii=False)[3:-3],
        quote(VALUE, safe=""),
        quote(VALUE, safe="-_.!~*'()"),
        base64.b64encode(VALUE.encode()).decode(),
        base64.urlsafe_b64encode(VALUE.encode()).decode().rstrip("="),
    ],
)
def test_every_form_of_a_value_is_hidden(form: str) -> None:
    """As it is, in JSON, in JSON in JSON, in a URL, in base64: its name stands there instead."""
    assert of(TOKEN=VALUE).text(f"before {form} after") == "before [secret TOKEN] after"


@pytest.mark.parametrize("before", ["", "a", "ab", "abc", "abcd"])
def test_a_value_in_something_that_is_base64_is_hidden(before: str) -> None:
    """`user:password` as Basic authentication: wherever the value begins."""
    shown = base64.b64encode(f"{before}{PLAIN}:more".encode()).decode()

    hidden = of(KEY=PLAIN).text(f"Basic {shown}")

    left = hidden.removeprefix("Basic ").split("[secret KEY]")
    assert len(left) == 2
    assert len(left[0]) <= len(before) * 8 // 6 + 1
    assert len(left[1]) <= len(base64.b64encode(b"?:more?"))


def test_short_values_are_not_looked_for() -> None:
    """Five characters: hiding them would hide half of all text."""
    assert redaction_of({"PIN": "12345"}) is None
    assert redaction_of({}) is None
    assert of(PIN="12345", LONG="123456").text("12345 123456") == "12345 [secret LONG]"


def test_of_two_values_the_longer_one_counts() -> None:
    """And a mark is not searched again: a value may be a word of it."""
    redaction = of(A="secret", B="secret-and-more", NAMES="secret N")

    assert redaction.text("secret-and-more, secret") == "[secret B], [secret A]"


@pytest.mark.parametrize(
    ("secret", "given", "hidden"),
    [
        ("123456", {"n": 123456, "m": 1234567}, {"n": "[secret S]", "m": "[secret S]7"}),
        ("abcdef", {"abcdef": ["abcdef"]}, {"[secret S]": ["[secret S]"]}),
        ("1,2,3,", [1, 2, 3, 4], [1, 2, 3, 4]),
        ('","b":"', {"a": "x", "b": "y"}, {"a": "x[secret S]y"}),
        ("nothing here", {"a": [1.5, None, True]}, {"a": [1.5, None, True]}),
    ],
)
def test_json_stays_json(secret: str, given: object, hidden: object) -> None:
    """Whatever the value is: a number, a key, a piece of the syntax."""
    data = msgspec.json.encode(given)

    shown = of(S=secret).json(data)

    assert msgspec.json.decode(shown) == hidden


def test_any_json_with_any_secret_stays_json_and_loses_it() -> None:
    """Random texts of few characters, so that they meet: no value is left in any text."""
    seed = time.time_ns()
    print(f"seed {seed}")  # noqa: T201 - to repeat it
    rng = random.Random(seed)

    def text(least: int, most: int) -> str:
        return "".join(rng.choices('ab"\\12,:[]{}é', k=rng.randint(least, most)))

    def texts(value: object) -> list[str]:
        if isinstance(value, dict):
            return [one for pair in value.items() for part in pair for one in texts(part)]
        if isinstance(value, list):
            return [one for part in value for one in texts(part)]
        return [str(value)]

    for _ in range(200):
        value = text(6, 8)
        given = {text(0, 9): [text(0, 30) + value, rng.randint(0, 10**9)], value: None}

        shown = msgspec.json.decode(of(S=value).json(msgspec.json.encode(given)))

        assert not any(value in one for one in texts(shown))


def test_a_line_that_was_cut_shows_no_beginning_of_a_value() -> None:
    """The log's limit has cut it in the middle: what is left of it is hidden, too."""
    redaction = of(KEY=PLAIN)

    cut = redaction.line(f"the key is {PLAIN[:17]}{LINE_CUT}")
    whole = redaction.line(f"the key is {PLAIN[:3]}")

    assert cut == f"the key is [secret KEY]{LINE_CUT}"
    assert whole == "the key is sk_"


@pytest.mark.parametrize("tail", ["' is not a URL: why", "; known: a", ""])
@pytest.mark.parametrize("value", [PLAIN, VALUE, "1234567"])
def test_a_refusal_that_quotes_a_piece_shows_no_beginning(value: str, tail: str) -> None:
    """Wherever the cut falls; what was not asked for with the value stays as it is."""
    redaction = of(KEY=value, OTHER="not a word of it")
    asked = msgspec.json.encode({"url": "x " + value}).decode()

    for length in range(4, len(value) + 1):
        told = f"fetch: '{repr('x ' + value[:length])[1:-1]}{tail}"
        assert redaction.refusal(told, asked) == f"fetch: 'x [secret KEY]{tail}"
    assert redaction.refusal(f"no {value[:5]}", '{"url":"y"}') == f"no {value[:5]}"


def test_a_refusal_with_many_beginnings_is_hidden_as_a_whole() -> None:
    """It is the guest that chooses what is quoted."""
    told = of(KEY=PLAIN).refusal("sk_l " * 100_000, f'"{PLAIN}"')

    assert told == "[secret KEY]"


@pytest.mark.parametrize("value", [PLAIN, VALUE, "a/b/c/d", "grüße-😀"])
def test_escapes_in_json_hide_no_value(value: str) -> None:
    """A guest may write each sign as it likes; who reads the JSON gets the same text."""
    escaped = "".join(f"\\u{unit:04X}" for unit in memoryview(value.encode("utf-16-le")).cast("H"))
    slashed = json.dumps(value).replace("/", "\\/")
    raw = f'["kv.put",{{"{escaped}":{slashed}}},"a\\u0001\\ud83d\\ude00"]'.encode()
    answer = f'{{"status":200,"headers":[],"body":"{escaped}","body_base64":false}}'.encode()
    redaction = of(KEY=value)

    shown = msgspec.json.decode(redaction.json(raw))
    response = msgspec.json.decode(redaction.response(answer))

    assert shown == ["kv.put", {"[secret KEY]": "[secret KEY]"}, "a\x01😀"]
    assert response["body"] == "[secret KEY]"


def test_errors_are_shown_without_values() -> None:
    """Name, message and stack; a message ends where the guest's side has cut it."""
    error = GuestError(
        name=PLAIN, message=f"no {PLAIN} and {PLAIN[:9]}", stack=f"at {PLAIN} (main.js:1:2)", line=3
    )

    shown = of(KEY=PLAIN).error(error)

    assert shown.name == "[secret KEY]"
    assert shown.message == "no [secret KEY] and [secret KEY]"
    assert shown.stack == "at [secret KEY] (main.js:1:2)"
    assert shown.line == 3


def test_a_response_keeps_its_form() -> None:
    """Status and field names are ours even if a secret is `status`; a body of bytes stays one."""
    redaction = of(WORD="status", KEY=PLAIN)
    body = base64.b64encode(b"\xff" + PLAIN.encode() + b"\xfe").decode()
    answer = {"status": 200, "headers": [["x-key", PLAIN]], "body": body, "body_base64": True}

    shown = msgspec.json.decode(redaction.response(msgspec.json.encode(answer)))

    assert shown["status"] == 200
    assert shown["headers"] == [["x-key", "[secret KEY]"]]
    assert base64.b64decode(shown["body"]) == b"\xff[secret KEY]\xfe"


def test_lines_of_a_value_with_several_are_hidden_each() -> None:
    """A private key is often printed line by line."""
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQ\nshort\n-----END KEY-----"

    assert of(PEM=key).text("| MIIEvQIBADANBgkqhkiG9w0BAQ\n| short") == "| [secret PEM]\n| short"


def test_marks_do_not_make_a_text_grow_without_limit() -> None:
    """A megabyte of a short value becomes one mark, not six megabytes of them."""
    redaction = of(A_RATHER_LONG_NAME="aaaaaa")

    assert redaction.text("aaaaaa" * 170_000) == "[secret A_RATHER_LONG_NAME]"
    assert redaction.json(b'"%b"' % (b"aaaaaa" * 170_000)) == b'"[secret A_RATHER_LONG_NAME]"'


def test_the_repr_shows_no_value() -> None:
    """A traceback that prints it gives nothing away."""
    assert PLAIN not in repr(of(KEY=PLAIN))


def test_looking_costs_little() -> None:
    """Three secrets; a result of 500 bytes, five lines of log and a transcript: 20 us, the best of

    several rounds, for other programs run on this machine, too.
    """
    redaction = of(A=PLAIN, B="postgres://user:pass@host/db?sslmode=require", C="0123456789abcdef")
    result, line = json.dumps({"values": list(range(100))}).encode(), "temperature is 71.5 now " * 3
    call = b'["kv.get",{"namespace":"config","key":"limits"},true,{"hot":75,"cold":10}]'
    rounds = []

    for _ in range(20):
        begun_ns = time.perf_counter_ns()
        for _ in range(50):
            redaction.json(result)
            redaction.json(call)
            for _ in range(5):
                redaction.line(line)
        rounds.append((time.perf_counter_ns() - begun_ns) / 50 / 1000)

    print(f"{min(rounds):.1f} us a run")  # noqa: T201 - the measurement
    assert min(rounds) < 20
