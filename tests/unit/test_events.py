"""Times and values as devices send them."""

from datetime import datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.clock import iso
from engine.errors import Invalid, PayloadTooLarge
from engine.events import RawValue, RawWrite, check_values, parse_time
from engine.quotas import EVENT_BYTES_MAX, WRITE_VALUES_MAX

NOW = 1_288_268_336_799  # 2010-10-28T12:18:56.799Z
SECOND = 1_288_268_336_000
OFFSETS = st.integers(-1_439, 1_439).map(lambda minutes: timezone(timedelta(minutes=minutes)))


def raw(*values: dict[str, Any]) -> list[RawValue]:
    return msgspec.json.decode(msgspec.json.encode({"values": values}), type=RawWrite).values


def refusal(*values: dict[str, Any]) -> tuple[str, str]:
    with pytest.raises(Invalid) as caught:
        check_values(raw(*values), NOW)
    (problem,) = caught.value.problems
    return problem.pointer, problem.message


@pytest.mark.parametrize(
    ("text", "at_ms"),
    [
        ("20101028121856", SECOND),
        ("20101028T121856", SECOND),
        ("2010-10-28T12:18:56.799Z", NOW),
        ("2010-10-28T12:18:56Z", SECOND),
        ("2010-10-28T14:18:56.799+02:00", NOW),
        ("2010-10-28T12:18:56.799", NOW),  # without a zone: UTC
        ("2010-10-28 12:18:56.799Z", NOW),
        ("2010-10-28T12:18:56.7994Z", NOW),
        ("2010-10-28", 1_288_224_000_000),
        ("1969-12-31T23:59:59.999Z", -1),
        (NOW, NOW),
        (0, 0),
        (253_402_300_799_999, 253_402_300_799_999),
        ("0001-01-01T00:00:00Z", -62_135_596_800_000),
        ("9999-12-31T23:59:59.999Z", 253_402_300_799_999),
    ],
)
def test_a_time_is_read_in_every_form(text: str | int, at_ms: int) -> None:
    """Those of the classic API, ISO 8601, and milliseconds."""
    assert parse_time(text) == at_ms


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "2010",
        "20101328121856",  # month 13
        "20100230121856",  # 30 February
        "20101028251856",  # hour 25
        "2010102812185",
        "201010281218560",
        "2010-10-28T12:18:60Z",
        "1288268336799",  # milliseconds are a number
        "x" * 10_000,
        -1,
        253_402_300_800_000,
        2**70,
        "0001-01-01T00:00:00+14:00",  # in year 0, in UTC
        "9999-12-31T23:59:59-14:00",  # in year 10000
        "9999-12-31T23:59:59.9999Z",  # rounded up into it
    ],
)
def test_what_is_no_time_is_refused(text: str | int) -> None:
    """With what was sent, shortened, and an example of what would be right."""
    with pytest.raises(ValueError, match="is not a time") as caught:
        parse_time(text)

    assert len(str(caught.value)) < 200
    assert str(text)[:20] in str(caught.value)


@given(st.datetimes(timezones=st.none() | OFFSETS))
def test_a_time_that_is_taken_can_be_written_down_again(moment: datetime) -> None:
    """What is stored comes back out of the API as the same moment."""
    try:
        at_ms = parse_time(moment.isoformat())
    except ValueError:
        return

    assert parse_time(iso(at_ms)) == at_ms
    assert len(iso(at_ms)) == len("2010-10-28T12:18:56.799Z")


def test_a_value_keeps_its_json_as_it_came() -> None:
    """Digits and the order of members survive; without a time it is now."""
    body = (
        b'{"values":[{"key":"a.b","value":{"z":1.50,"a":[1e2]}},{"key":"$geo","value":" \\u00e9"}]}'
    )

    first, second = check_values(msgspec.json.decode(body, type=RawWrite).values, NOW)

    assert (first.key, first.json, first.at_ms, first.geo) == (
        "a.b",
        '{"z":1.50,"a":[1e2]}',
        NOW,
        None,
    )
    assert (second.key, second.json) == ("$geo", '" \\u00e9"')


def test_a_value_may_have_a_place_and_a_time() -> None:
    """And members that nobody knows, which are passed over."""
    (value,) = check_values(
        raw(
            {
                "key": "t",
                "value": 1,
                "datetime": "20101028121856",
                "geo": {"lat": 41.4, "long": 2, "altitude": 3},
                "unit": "C",
            }
        ),
        NOW,
    )

    assert value.at_ms == SECOND
    assert value.geo == '{"lat":41.4,"long":2.0}'


@pytest.mark.parametrize("value", [0, -1.5, "", "text", True, False, [], {}, [None], {"a": None}])
def test_any_json_but_null_is_a_value(value: Any) -> None:
    """Falsy ones too, and null inside of something."""
    (checked,) = check_values(raw({"key": "k", "value": value}), NOW)

    assert msgspec.json.decode(checked.json) == value


@pytest.mark.parametrize("key", ["", "a b", "a/b", "ä", "a\n", "k" * 129, "a$", "$", '"', "\u0663"])
def test_a_key_is_made_of_plain_characters(key: str) -> None:
    """The error points at the value that has it."""
    pointer, message = refusal({"key": "good", "value": 1}, {"key": key, "value": 1})

    assert pointer == "/values/1/key"
    assert len(message) < 200


@pytest.mark.parametrize("key", ["k", "k" * 128, "$settings", "a.b-c_D9", "__proto__"])
def test_plain_keys_are_taken(key: str) -> None:
    """Up to 128 characters; `$` may come first."""
    (checked,) = check_values(raw({"key": key, "value": 1}), NOW)

    assert checked.key == key


def test_null_is_no_value() -> None:
    """It would not be known from `nothing was sent`."""
    assert refusal({"key": "k", "value": None}) == ("/values/0/value", "value must not be null")


def test_a_bad_time_points_at_its_value() -> None:
    """In a write of many, the sender finds it."""
    pointer, message = refusal({"key": "k", "value": 1, "datetime": "yesterday"})

    assert pointer == "/values/0/datetime"
    assert "'yesterday' is not a time" in message


@pytest.mark.parametrize("count", [0, WRITE_VALUES_MAX + 1])
def test_a_write_has_a_number_of_values_within_the_limit(count: int) -> None:
    """The error says how many there were and how many may be."""
    pointer, message = refusal(*({"key": "k", "value": 1} for _ in range(count)))

    assert pointer == "/values"
    assert message == f"values has {count} items; 1 to {WRITE_VALUES_MAX} are allowed"


def test_the_most_values_are_taken() -> None:
    """The limit itself is allowed."""
    values = raw(*({"key": "k", "value": 1} for _ in range(WRITE_VALUES_MAX)))

    assert len(check_values(values, NOW)) == WRITE_VALUES_MAX


def test_a_write_is_not_larger_than_an_event_may_be() -> None:
    """Keys and values count; to the byte."""
    fits = {"key": "k", "value": "x" * (EVENT_BYTES_MAX - 3)}  # two quotes and the key
    too_large = {"key": "k", "value": "x" * (EVENT_BYTES_MAX - 2)}

    assert len(check_values(raw(fits), NOW)) == 1
    with pytest.raises(PayloadTooLarge) as caught:
        check_values(raw(too_large), NOW)
    assert caught.value.limit == {
        "name": "event_bytes",
        "value": EVENT_BYTES_MAX,
        "used": EVENT_BYTES_MAX + 1,
    }
