"""The connector of Twilio, beyond its page: against a stand-in that keeps Twilio's rules."""

import asyncio
import base64
import inspect
import json
import ssl
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twilio.rest.api.v2010.account.call import CallList
from twilio.rest.api.v2010.account.message import MessageList

from engine.connectors.contract import (
    Answer,
    Callback,
    CallbackRefused,
    Outgoing,
    Refused,
    Retry,
    Sent,
    TellsLater,
    check_connection,
)
from engine.connectors.twilio import _CALL, _MESSAGE, BODY_CHARS_MAX, ERRORS, Twilio
from engine.egress import Egress
from engine.errors import HostCallRefused, Invalid
from tests.standins.provider import HTTP_FAULTS, Reply
from tests.standins.providers.twilio import (
    ACCOUNT,
    KEY,
    KEY_SECRET,
    OWNED,
    TOKEN,
    StandIn,
    error,
    signed,
)

NOW = 1_700_000_000_500
TLS = ssl.create_default_context()  # once: it takes a tenth of a second
TO = "+15005550010"
MINE = {"from": OWNED}
PUBLIC = "https://cloud.example.com/v1/callbacks/prj_1/SMS/dlv_1"
SECRETS = (TOKEN, KEY_SECRET, base64.b64encode(f"{ACCOUNT}:{TOKEN}".encode()).decode())
BY_KEY = {"account_sid": ACCOUNT, "api_key_sid": KEY, "api_key_secret": KEY_SECRET}

connector = Twilio()


@pytest.fixture
def twilio() -> Iterator[StandIn]:
    with StandIn() as stand_in:
        yield stand_in


async def send(
    twilio: StandIn,
    egress: Egress,
    message: dict[str, Any] | None = None,
    action: str = "send",
    *,
    callback_url: str | None = None,
    timeout_ms: int = 700,
    **spoiled: dict[str, Any],
) -> Answer:
    connection = twilio.connection()
    credentials = spoiled.get("credentials", connection["credentials"])
    given = connection["settings"] | spoiled.get("settings", {})
    check_connection(connector, credentials, given)
    checked = connector.check_message(action, {"to": TO, "body": "hot"} | (message or {}), given)
    outgoing = Outgoing(
        action=action,
        message=json.loads(json.dumps(checked)),
        credentials=credentials,
        settings=given,
        delivery_id="dlv_1",
        attempt=1,
        now_ms=NOW,
        callback_url=callback_url,
        timeout_ms=timeout_ms,
    )
    assert not [secret for secret in SECRETS if secret in repr(outgoing)]
    return await connector.send(egress, outgoing)


async def call(twilio: StandIn, egress: Egress, **fields: Any) -> Answer:
    return await send(twilio, egress, {"body": None} | fields, "call")


@pytest.mark.parametrize("code", sorted(ERRORS))
async def test_each_code_is_judged_as_the_table_says(
    twilio: StandIn, egress: Egress, code: int
) -> None:
    """With the remedy, and what Twilio said, in the error; one request, whatever comes."""
    twilio.then(error(code))

    answer = await send(twilio, egress)

    meaning = ERRORS[code]
    assert isinstance(answer, Retry if meaning.then == "retry" else Refused)
    assert answer.error.startswith(f"Twilio {code}: ")
    assert answer.error.endswith(meaning.remedy)
    assert len(answer.error) <= 300
    if isinstance(answer, Refused):
        assert answer.disables == (meaning.then == "disables")
    else:
        assert answer.after_ms == (meaning.after_s * 1000 if meaning.after_s else None)
    assert len(twilio.asked) == 1


@pytest.mark.parametrize("name", HTTP_FAULTS)
async def test_one_attempt_is_one_request(twilio: StandIn, egress: Egress, name: str) -> None:
    """The SDK tries nothing again by itself."""
    twilio.then(HTTP_FAULTS[name])

    answer = await send(twilio, egress, timeout_ms=300)

    assert not isinstance(answer, Sent)
    assert len(twilio.asked) == 1


async def test_a_retry_after_wins_over_the_table(twilio: StandIn, egress: Egress) -> None:
    """What Twilio asks for is what is done."""
    twilio.then(error(21611, {"Retry-After": "5"}))

    answer = await send(twilio, egress)

    assert isinstance(answer, Retry)
    assert answer.after_ms == 5_000


async def test_a_long_error_keeps_its_remedy(twilio: StandIn, egress: Egress) -> None:
    """And it stays one line of at most 300 characters."""
    body = {"code": 21610, "message": "x\r\n" * 5_000, "status": 400}
    twilio.then(Reply(status=400, body=json.dumps(body).encode()))

    answer = await send(twilio, egress)

    assert isinstance(answer, Refused)
    assert len(answer.error) == 300
    assert answer.error.endswith(ERRORS[21610].remedy)
    assert "\n" not in answer.error


@pytest.mark.parametrize(
    "reply",
    [
        lambda text: Reply(status=400, body=json.dumps({"code": 20403, "message": text}).encode()),
        lambda text: Reply(status=400, body=text.encode()),
        lambda text: Reply(status=500, body=text.encode()),
        lambda text: Reply(status=201, body=text.encode()),
        lambda text: Reply(
            status=400,
            body=json.dumps({"type": "x", "title": text, "status": 400, "code": 5}).encode(),
        ),
    ],
    ids=["json", "400", "500", "201", "rfc9457"],
)
async def test_an_answer_that_says_the_credentials_back_is_cleaned(
    twilio: StandIn, egress: Egress, reply: Any
) -> None:
    """A proxy may echo a request; what it echoes is no error's to show."""
    connection = twilio.connection()
    for credentials in (connection["credentials"], BY_KEY | {"auth_token": TOKEN}):
        basic = base64.b64encode(f"{KEY}:{KEY_SECRET}".encode()).decode()
        echo = f"you said {ACCOUNT} {TOKEN} {KEY} {KEY_SECRET} {SECRETS[2]} {basic}"
        twilio.then(reply(echo))

        answer = await send(twilio, egress, credentials=credentials)

        assert not isinstance(answer, Sent)
        assert "[credential]" in answer.error
        used = [text for text in credentials.values() if text in answer.error]
        assert used == []
        assert SECRETS[2] not in answer.error


@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    status=st.sampled_from([200, 201, 204, 400, 401, 429, 500]),
    body=st.one_of(
        st.binary(max_size=40),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=9),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["sid", "code", "message", "status", "type", "title", "to"]),
                    inner,
                    max_size=5,
                )
            ),
            max_leaves=8,
        ).map(lambda value: json.dumps(value).encode()),
    ),
)
def test_whatever_is_answered_there_is_a_verdict(status: int, body: bytes) -> None:
    """No exception of the SDK comes out, and nothing is sent that Twilio gave no sid."""

    async def play() -> Answer:
        egress = Egress([ip_network("127.0.0.0/8")], tls=TLS)
        try:
            with StandIn() as twilio:
                twilio.then(Reply(status=status, body=body if status != 204 else b""))
                return await send(twilio, egress)
        finally:
            await egress.close()

    answer = asyncio.run(play())

    assert isinstance(answer, Retry | Refused)
    assert len(answer.error) <= 300


async def test_the_form_is_as_twilio_wants_it(twilio: StandIn, egress: Egress) -> None:
    """Lists are repeated fields, objects are JSON, flags are words."""
    message = {
        "body": "größer & heißer\r\nX-Evil: 1",
        "media_url": ["https://x.example/a.png", "https://x.example/b.png"],
        "content_sid": "HX" + "1" * 32,
        "content_variables": {"1": "Ana"},
        "validity_period": 600,
        "send_as_mms": True,
    }

    answer = await send(twilio, egress, message, callback_url=PUBLIC)

    (taken,) = twilio.accepted
    assert answer == Sent(201, "MM" + "1".zfill(32))
    assert taken["all"]["MediaUrl"] == message["media_url"]
    assert taken["Body"] == message["body"]
    assert json.loads(taken["ContentVariables"]) == {"1": "Ana"}
    assert (taken["ValidityPeriod"], taken["SendAsMms"]) == ("600", "true")
    assert taken["StatusCallback"] == PUBLIC
    (asked,) = twilio.asked
    assert asked.headers["user-agent"] == "cloudcode-engine"
    assert "x-evil" not in asked.headers


@pytest.mark.parametrize(
    "names",
    [
        ("mediaUrl", "maxPrice", "validityPeriod", "messagingServiceSid", "statusCallback"),
        ("MediaUrl", "MaxPrice", "ValidityPeriod", "MessagingServiceSid", "StatusCallback"),
    ],
)
async def test_the_names_of_twilios_other_libraries_are_taken(
    twilio: StandIn, egress: Egress, names: tuple[str, ...]
) -> None:
    """Those for JavaScript, and of the API itself; a price may be a text."""
    service, place = "MG" + "a" * 32, "https://x.example/s"
    values = ("https://x.example/a.png", "0.5", 600, service, place)

    answer = await send(twilio, egress, dict(zip(names, values, strict=True)))

    assert isinstance(answer, Sent)
    (taken,) = twilio.accepted
    assert (taken["MediaUrl"], taken["MaxPrice"]) == (values[0], "0.5")
    assert (taken["ValidityPeriod"], taken["MessagingServiceSid"]) == ("600", service)
    assert taken["StatusCallback"] == place


@pytest.mark.parametrize("other", ["To", "TO"])
def test_two_spellings_of_one_field_are_refused(other: str) -> None:
    """Nobody could say which one is meant."""
    with pytest.raises(HostCallRefused, match=f"to and {other} are one field"):
        connector.check_message("send", {"to": TO, other: TO, "body": "x"}, MINE)


async def test_a_key_alone_asks_for_no_callback(twilio: StandIn, egress: Egress) -> None:
    """It could not be checked: callbacks are signed with the auth token."""
    await send(twilio, egress, credentials=BY_KEY, callback_url=PUBLIC)
    both = BY_KEY | {"auth_token": twilio.connection()["credentials"]["auth_token"]}
    await send(twilio, egress, credentials=both, callback_url=PUBLIC)

    assert [one.get("StatusCallback") for one in twilio.accepted] == [None, PUBLIC]


@pytest.mark.parametrize(
    ("action", "message", "given", "expected"),
    [
        ("send", {}, MINE, {"From": OWNED}),
        ("send", {"from_": OWNED}, {"from": "ACME"}, {"From": OWNED}),
        ("send", {}, {"from": "MG" + "a" * 32}, {"MessagingServiceSid": "MG" + "a" * 32}),
        ("send", {"messaging_service_sid": "MG" + "b" * 32}, MINE, {"From": None}),
        ("send", {"to": "+1 (500) 555-0010"}, MINE, {"To": TO}),
        ("send", {}, {"from": "+1 (500) 555-0006"}, {"From": OWNED}),
        ("send", {"to": None, "To": "+1 (500) 555-0010", "from": OWNED}, {}, {"To": TO}),
        ("whatsapp", {}, MINE, {"From": f"whatsapp:{OWNED}", "To": f"whatsapp:{TO}"}),
        ("whatsapp", {"to": f"whatsapp:{TO}"}, MINE, {"To": f"whatsapp:{TO}"}),
    ],
)
async def test_sender_and_recipient(
    twilio: StandIn,
    egress: Egress,
    action: str,
    message: dict[str, Any],
    given: dict[str, Any],
    expected: dict[str, Any],
) -> None:
    """The message's own sender wins; a person is one recipient, however the number is written."""
    answer = await send(twilio, egress, message, action, settings=given)

    assert isinstance(answer, Sent)
    (taken,) = twilio.accepted
    assert {name: taken.get(name) for name in expected} == expected
    checked = connector.check_message(action, {"to": TO, "body": "x"} | message, given)
    assert connector.recipient(action, checked) == taken["To"]


@pytest.mark.parametrize(
    "say",
    ["<Hangup/> & \"co\" 'x' ☃", {"text": "]]>", "language": "de-DE", "voice": 'Polly."Vicki"'}],
)
async def test_what_is_said_is_escaped(twilio: StandIn, egress: Egress, say: Any) -> None:
    """The text of an alarm cannot become an instruction of TwiML."""
    answer = await call(twilio, egress, say=say)

    assert answer == Sent(201, "CA" + "1".zfill(32))
    (taken,) = twilio.accepted
    response = ET.fromstring(taken["Twiml"])
    assert [child.tag for child in response.iter()] == ["Response", "Say"]
    wanted = {"text": say} if isinstance(say, str) else say
    assert response[0].text == wanted["text"]
    assert response[0].attrib == {name: text for name, text in wanted.items() if name != "text"}


async def test_a_call_asks_for_news_of_every_step(twilio: StandIn, egress: Egress) -> None:
    """Unless the message names its own place for them."""
    await send(
        twilio, egress, {"body": None, "url": "https://x.example/t"}, "call", callback_url=PUBLIC
    )
    theirs = {"body": None, "twiml": "<Response/>", "status_callback": "https://x.example/s"}
    await send(twilio, egress, theirs, "call", callback_url=PUBLIC)

    ours, own = twilio.accepted
    assert ours["StatusCallback"] == PUBLIC
    assert ours["all"]["StatusCallbackEvent"] == ["initiated", "ringing", "answered", "completed"]
    assert own["StatusCallback"] == "https://x.example/s"
    assert "StatusCallbackEvent" not in own


@pytest.mark.parametrize(
    ("action", "message", "field"),
    [
        ("send", {"to": 5}, "to must be a string"),
        ("send", {"to": ["+15005550010"]}, "to must be a string"),
        ("send", {"to": ""}, "to is required"),
        ("send", {"to": "+0123456789"}, "E.164"),
        ("send", {"to": "+1500555\u0660\u0660\u0661\u0660"}, "E.164"),
        ("send", {"to": "+15005550010\r\nFrom: x"}, "E.164"),
        ("send", {"to": "whatsapp:12"}, "E.164"),
        ("send", {"body": 5}, "body must be a string"),
        ("send", {"body": "x" * (BODY_CHARS_MAX + 1)}, "body has more than"),
        ("send", {"body": None}, "give body"),
        ("send", {"media_url": []}, "media_url must be a list of strings"),
        ("send", {"media_url": ["x"] * 11}, "media_url has more than"),
        ("send", {"media_url": "ftp://x/y"}, "media_url must be"),
        ("send", {"media_url": [5]}, "media_url must be a list of strings"),
        ("send", {"validity_period": True}, "validity_period must be a whole number"),
        ("send", {"validity_period": 0}, "validity_period must be 1 to"),
        ("send", {"send_as_mms": "yes"}, "send_as_mms must be true or false"),
        ("send", {"max_price": "1e9"}, "max_price must be a number"),
        ("send", {"from": "x" * 12}, "from must be"),
        ("send", {"from": "+1"}, "from must be"),
        ("send", {"Boddy": "x"}, "no field 'Boddy'"),
        ("send", {"x" * 500: 1}, "no field 'xxx"),
        ("send", {"say": "x"}, "no field 'say'"),
        ("send", {"content_variables": {"1": "x" * 300_000}}, "262144"),
        ("whatsapp", {"to": "whatsapp:me"}, "E.164"),
        ("call", {}, "exactly one of"),
        ("call", {"say": "x", "twiml": "<Response/>"}, "exactly one of"),
        ("call", {"say": {}}, "say must be"),
        ("call", {"say": {"text": "x", "rate": "1"}}, "say has"),
        ("call", {"say": {"text": 5}}, "say has"),
        ("call", {"say": "a\x00b"}, "TwiML cannot carry"),
        ("call", {"say": "&" * 900}, "4000"),
        ("call", {"twiml": "x" * 4_001}, "twiml has more than"),
        ("call", {"url": "javascript:x"}, "url must be"),
        ("call", {"say": "x", "from": "MG" + "a" * 32}, "a call needs a number"),
        ("call", {"say": "x", "sip_auth_password": "x"}, "no field 'sip_auth_password'"),
    ],
)
def test_a_wrong_message_is_refused_in_the_run(
    action: str, message: dict[str, Any], field: str
) -> None:
    """The guest learns it at once, with the name of the field."""
    base = {"to": TO, "body": "hot"} if action != "call" else {"to": TO}

    with pytest.raises(HostCallRefused, match=field):
        connector.check_message(action, base | message, MINE)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    action=st.sampled_from(connector.actions),
    message=st.dictionaries(
        st.sampled_from(sorted({*_MESSAGE, *_CALL, "say", "from_", "token"})), JSON, max_size=6
    ),
)
def test_whatever_a_guest_gives_is_checked_or_refused(action: str, message: dict[str, Any]) -> None:
    """And what has passed has a recipient, and passes again."""
    try:
        checked = connector.check_message(action, message, MINE)
    except HostCallRefused:
        return
    assert connector.recipient(action, checked)
    assert connector.check_message(action, checked, MINE) == checked


def test_the_tables_of_fields_are_the_sdks() -> None:
    """A newer SDK may have more: then this says which."""
    message = set(inspect.signature(MessageList.create_async).parameters) - {"self"}
    calls = set(inspect.signature(CallList.create_async).parameters) - {"self"}

    assert {name.removesuffix("_") for name in message} == set(_MESSAGE)
    secrets = {"sip_auth_username", "sip_auth_password", "call_token"}  # not for a stored message
    assert {name.removesuffix("_") for name in calls} - secrets == set(_CALL)


@pytest.mark.parametrize(
    ("credentials", "given", "pointer"),
    [
        ({}, {}, "/credentials/account_sid"),
        ({"account_sid": "AC1", "auth_token": TOKEN}, {}, "/credentials/account_sid"),
        ({"account_sid": ACCOUNT}, {}, "/credentials"),
        ({"account_sid": ACCOUNT, "auth_token": "a b c d e"}, {}, "/credentials/auth_token"),
        ({"account_sid": ACCOUNT, "auth_token": "x" * 8 + "\n"}, {}, "/credentials/auth_token"),
        ({"account_sid": ACCOUNT, "api_key_sid": KEY}, {}, "/credentials"),
        (BY_KEY | {"api_key_sid": "AC1"}, {}, "/credentials/api_key_sid"),
        (BY_KEY | {"more": 1}, {}, "/credentials"),
        (BY_KEY, {"from": "+1"}, "/settings/from"),
        (BY_KEY, {"base_url": "x"}, "/settings/base_url"),
        (BY_KEY, {"from": "+1 (555) 123-456789012"}, "/settings/from"),
        (BY_KEY, {"region": "ie1"}, "/settings"),
    ],
)
def test_a_wrong_connection_is_refused(
    credentials: dict[str, Any], given: dict[str, Any], pointer: str
) -> None:
    """With a pointer, and without a piece of a secret."""
    with pytest.raises(Invalid) as refused:
        check_connection(connector, credentials, given)

    assert refused.value.problems[0].pointer.startswith(pointer)
    assert not [secret for secret in SECRETS if secret in str(refused.value)]


async def test_a_base_url_may_have_a_path(egress: Egress) -> None:
    """As an operator's proxy has it."""

    class Behind(StandIn):
        prefix = "/out/twilio"

    with Behind() as twilio:
        given = {"base_url": twilio.url + "/out/twilio/"}
        assert await send(twilio, egress, settings=given) == Sent(201, "SM" + "1".zfill(32))


async def test_the_sdk_cannot_go_around_the_guard(
    twilio: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forbidden address is refused; neither a proxy nor a region comes from the environment."""
    monkeypatch.setenv("HTTPS_PROXY", twilio.url)
    monkeypatch.setenv("HTTP_PROXY", twilio.url)
    monkeypatch.setenv("TWILIO_REGION", "ie1")
    monkeypatch.setenv("TWILIO_EDGE", "dublin")
    asked: list[str] = []

    async def resolve(host: str, _port: int) -> list[str]:
        asked.append(host)
        return ["10.0.0.5"]

    egress = Egress((), resolve=resolve, tls=TLS)

    answer = await send(twilio, egress, settings={"base_url": None})
    inside = await send(twilio, egress, settings={"base_url": "http://metadata.internal/"})
    await egress.close()

    for refused in (answer, inside):
        assert isinstance(refused, Refused)
        assert "CLOUDCODE_EGRESS_ALLOW=10.0.0.5/32" in refused.error
    assert asked == ["api.twilio.com", "metadata.internal"]
    assert twilio.asked == []


@pytest.mark.slow
async def test_many_may_begin_at_once(twilio: StandIn, egress: Egress) -> None:
    """No state is shared between sends."""
    answers = await asyncio.gather(
        *[send(twilio, egress, {"body": f"{n}"}, timeout_ms=5_000) for n in range(20)]
    )

    assert len({answer.message_id for answer in answers if isinstance(answer, Sent)}) == 20
    assert sorted(int(taken["Body"]) for taken in twilio.accepted) == list(range(20))


async def test_the_credentials_can_be_tried(twilio: StandIn, egress: Egress) -> None:
    """With nobody told anything."""
    good = twilio.connection()
    wrong = good["credentials"] | {"auth_token": "x" * 32}
    given = good["settings"]

    by_token = await connector.test(egress, good["credentials"], given, now_ms=NOW)
    by_key = await connector.test(egress, BY_KEY, given, now_ms=NOW)
    refused = await connector.test(egress, wrong, given, now_ms=NOW)
    twilio.then(Reply(status=200, body=json.dumps({"sid": ACCOUNT, "status": "closed"}).encode()))
    closed = await connector.test(egress, good["credentials"], given, now_ms=NOW)
    twilio.then(Reply(status=200, body=b"[]"))
    portal = await connector.test(egress, good["credentials"], given, now_ms=NOW)

    assert by_token == Sent(200, "Boilers (active)")
    assert isinstance(by_key, Sent)
    assert isinstance(refused, Refused)
    assert refused.disables
    assert isinstance(closed, Refused)
    assert "closed" in closed.error
    assert isinstance(portal, Refused)
    assert {asked.method for asked in twilio.asked} == {"GET"}


def told(params: dict[str, str], told_to: str = PUBLIC, **spoiled: Any) -> list[Any]:
    headers, body = signed(told_to, params, spoiled.get("signed_by", TOKEN))
    callback = Callback(
        url=spoiled.get("url", told_to),
        headers=headers | spoiled.get("headers", {}),
        body=spoiled.get("body", body),
        delivery_id="dlv_1",
    )
    credentials = spoiled.get("credentials", {"account_sid": ACCOUNT, "auth_token": TOKEN})
    return connector.callback(credentials, {}, callback)


@pytest.mark.parametrize(
    ("params", "final", "error"),
    [
        ({"MessageStatus": "queued"}, None, None),
        ({"MessageStatus": "sent"}, None, None),
        ({"MessageStatus": "delivered"}, "delivered", None),
        ({"MessageStatus": "read"}, "delivered", None),
        (
            {"MessageStatus": "undelivered", "ErrorCode": "30003"},
            "failed",
            "Twilio 30003: undelivered; the phone is off or out of reach",
        ),
        (
            {"MessageStatus": "failed", "ErrorCode": "99999", "ErrorMessage": "new"},
            "failed",
            "Twilio 99999: new",
        ),
        ({"MessageStatus": "failed", "ErrorCode": "9" * 5_000}, "failed", None),
        ({"MessageStatus": "canceled"}, "failed", "Twilio says canceled"),
        ({"CallStatus": "ringing", "CallSid": "CA1"}, None, None),
        ({"CallStatus": "in-progress", "CallSid": "CA1"}, None, None),
        ({"CallStatus": "completed", "CallSid": "CA1"}, "delivered", None),
        ({"CallStatus": "busy", "CallSid": "CA1"}, "failed", "Twilio says busy"),
        ({"CallStatus": "no-answer", "CallSid": "CA1"}, "failed", "Twilio says no-answer"),
        ({"CallStatus": "failed", "CallSid": "CA1"}, "failed", "Twilio says failed"),
        ({"MessageStatus": "a new word"}, None, None),
    ],
)
def test_a_callback_says_what_became_of_it(
    params: dict[str, str], final: str | None, error: str | None
) -> None:
    """In Twilio's words, and in ours: final or on the way."""
    assert isinstance(connector, TellsLater)

    (found,) = told({"AccountSid": ACCOUNT, "MessageSid": "SM1", "To": "+1", **params})

    assert found.delivery_id == "dlv_1"
    assert found.final == final
    assert found.status == (params.get("MessageStatus") or params.get("CallStatus"))
    assert found.message_id == "SM1"
    if error is not None:
        assert found.error == error
    assert found.error is None or len(found.error) <= 300


@pytest.mark.parametrize(
    "spoiled",
    [
        {"signed_by": "x" * 32},
        {"signed_by": ""},
        {"headers": {"x-twilio-signature": ""}},
        {"headers": {"x-twilio-signature": "é"}},
        {"body": b"MessageStatus=delivered"},
        {"body": b"\xff\xfe"},
        {"body": b""},
        {"url": PUBLIC.replace("dlv_1", "dlv_2")},
        {"url": PUBLIC + "?x=1"},
        {"credentials": BY_KEY},
    ],
    ids=str,
)
def test_a_callback_that_twilio_did_not_sign_is_refused(spoiled: dict[str, Any]) -> None:
    """For this URL, this body, with this account's token."""
    params = {"MessageStatus": "failed", "MessageSid": "SM1", "ErrorMessage": "ü & =", "Empty": ""}

    assert told(params)[0].final == "failed"
    with pytest.raises(CallbackRefused) as refused:
        told(params, **spoiled)

    assert TOKEN not in str(refused.value)


def test_a_callback_may_name_the_port_or_not() -> None:
    """Twilio's own signatures differ in it."""
    params = {"MessageStatus": "sent"}
    with_port = PUBLIC.replace("example.com", "example.com:443")

    assert told(params, with_port, url=PUBLIC)
    assert told(params, PUBLIC, url=with_port)


@pytest.mark.slow
def test_the_engine_starts_without_the_sdks() -> None:
    """They take a second and 40 MB; most nodes never send."""
    code = (
        "import sys, engine.connectors\n"
        "heavy = {'twilio', 'slack_sdk', 'aiohttp', 'requests'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
