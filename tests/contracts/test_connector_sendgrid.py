"""SendGrid, beyond its page: what is sent, what each error means, what its event webhook says."""

import base64
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import sendgrid as sdk
from sendgrid.helpers.eventwebhook import EventWebhook

from engine.connectors.contract import (
    Answer,
    Callback,
    CallbackRefused,
    Outgoing,
    Refused,
    Retry,
    Sent,
    TellsLater,
    Told,
    check_connection,
)
from engine.connectors.sendgrid import SendGrid
from engine.egress import Egress
from engine.errors import HostCallRefused, Invalid
from tests.standins.http_server import Received, answer, http_server
from tests.standins.provider import Reply
from tests.standins.providers.sendgrid import (
    API_KEY,
    NO_SCOPE_KEY,
    OTHER_KEY,
    SENDER,
    StandIn,
    error,
    event,
    new_key,
    public_text,
    signed,
)

NOW = 1_700_000_000_500
DELIVERY = "dlv_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f"
SENDGRID = SendGrid()
MAIL = {"to": "ops@example.com", "subject": "Door", "text": "open"}


@pytest.fixture
def provider() -> Iterator[StandIn]:
    with StandIn() as stand_in:
        yield stand_in


async def send(
    egress: Egress, provider: StandIn, message: dict[str, Any], **settings: Any
) -> Answer:
    connection = provider.connection()
    settings = connection["settings"] | settings
    check_connection(SENDGRID, connection["credentials"], settings)
    return await SENDGRID.send(
        egress,
        Outgoing(
            action="send",
            message=SENDGRID.check_message("send", message, settings),
            credentials=connection["credentials"],
            settings=settings,
            delivery_id=DELIVERY,
            attempt=1,
            now_ms=NOW,
            timeout_ms=2_000,
        ),
    )


async def test_a_short_mail_becomes_a_v3_body(egress: Egress, provider: StandIn) -> None:
    """Each field stands where the reference has it; unknown ones are passed on."""
    content = base64.b64encode(b"log").decode()
    result = await send(
        egress,
        provider,
        {
            "to": ["Ops <ops@example.com>", {"email": "b@example.com", "name": "B"}],
            "cc": "c@example.com",
            "bcc": ['"D" <d@example.com>'],
            "reply_to": "desk@example.com",
            "subject": "Tür offen ☃",
            "text": "offen",
            "html": "<b>offen</b>",
            "attachments": [{"content": content, "filename": "a.log", "type": "text/plain"}],
            "categories": ["alarm"],
            "headers": {"X-Hall": "3"},
            "custom_args": {"hall": "3"},
            "send_at": 1_700_000_100,
            "asm": {"group_id": 7},
        },
    )

    (mail,) = provider.accepted
    assert isinstance(result, Sent)
    assert result.message_id
    assert mail == {
        "personalizations": [
            {
                "to": [
                    {"email": "ops@example.com", "name": "Ops"},
                    {"email": "b@example.com", "name": "B"},
                ],
                "cc": [{"email": "c@example.com"}],
                "bcc": [{"email": "d@example.com", "name": "D"}],
            }
        ],
        "from": {"email": SENDER, "name": "Hall 3"},
        "reply_to": {"email": "desk@example.com"},
        "subject": "Tür offen ☃",
        "content": [
            {"type": "text/plain", "value": "offen"},
            {"type": "text/html", "value": "<b>offen</b>"},
        ],
        "attachments": [{"content": content, "filename": "a.log", "type": "text/plain"}],
        "categories": ["alarm"],
        "headers": {"X-Hall": "3"},
        "custom_args": {"hall": "3", "delivery_id": DELIVERY},
        "send_at": 1_700_000_100,
        "asm": {"group_id": 7},
    }


async def test_a_template_needs_no_subject_and_no_text(egress: Egress, provider: StandIn) -> None:
    """The template brings both; its data belongs to the recipients."""
    message = {"to": "a@example.com", "template_id": "d-1", "dynamic_template_data": {"n": 1}}

    result = await send(egress, provider, message)

    assert isinstance(result, Sent)
    assert provider.accepted[0]["personalizations"][0]["dynamic_template_data"] == {"n": 1}
    assert "content" not in provider.accepted[0]


async def test_every_recipient_can_be_found_again_by_its_event(
    egress: Egress, provider: StandIn
) -> None:
    """Arguments of a personalization replace the mail's, so both get the delivery's id."""
    message = {
        "personalizations": [
            {"to": [{"email": "a@example.com"}], "custom_args": {"n": "1"}},
            {"to": [{"email": "b@example.com"}]},
        ],
        "subject": "x",
        "content": [{"type": "text/plain", "value": "x"}],
    }

    await send(egress, provider, message)

    (mail,) = provider.accepted
    assert mail["custom_args"] == {"delivery_id": DELIVERY}
    assert [part.get("custom_args") for part in mail["personalizations"]] == [
        {"n": "1", "delivery_id": DELIVERY},
        None,
    ]


async def test_one_attempt_is_one_request_as_the_sdk_makes_it(
    egress: Egress, provider: StandIn
) -> None:
    """Also when SendGrid fails; the headers are the SDK's, but the name is ours."""
    provider.then(Reply(status=500))

    failed = await send(egress, provider, MAIL)
    assert len(provider.asked) == 1
    sent = await send(egress, provider, MAIL)

    _, asked = provider.asked
    assert isinstance(failed, Retry)
    assert isinstance(sent, Sent)
    assert asked.headers["authorization"] == f"Bearer {API_KEY}"
    assert asked.headers["accept"] == "application/json"
    assert asked.headers["user-agent"] == "cloudcode-engine"


async def test_the_sdk_opens_no_connection_and_reads_no_proxy(
    egress: Egress, provider: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All goes through the guard; a proxy of the environment would go around it."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a connection of the SDK's own")

    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setattr("http.client.HTTPConnection.connect", fail)

    assert isinstance(await send(egress, provider, MAIL), Sent)


async def test_a_base_url_may_have_a_path(egress: Egress) -> None:
    """An operator's proxy has SendGrid behind a prefix."""

    async def respond(received: Received) -> bytes:
        return answer(202, X_Message_Id="m1")

    async with http_server(respond) as server:
        with StandIn() as stand_in:
            result = await send(egress, stand_in, MAIL, base_url=f"{server.url}/proxy/sg/")

    assert result == Sent(202, "m1")
    assert server.received[0].target == "/proxy/sg/v3/mail/send"


async def test_an_address_inside_is_refused(provider: StandIn) -> None:
    """By the same guard as everything else; the error says what an operator can do."""
    egress = Egress(())

    result = await send(egress, provider, MAIL, base_url="http://10.0.0.5")
    await egress.close()

    assert isinstance(result, Refused)
    assert "CLOUDCODE_EGRESS_ALLOW=10.0.0.5/32" in result.error


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (
            error(400, "The subject is required.", "subject"),
            Refused(400, "HTTP 400: subject: The subject is required."),
        ),
        (
            error(401, "The provided authorization grant is invalid, expired, or revoked"),
            Refused(
                401,
                "HTTP 401: The provided authorization grant is invalid, expired, or revoked - PUT"
                " the connection with a valid api_key",
                disables=True,
            ),
        ),
        (
            error(401, "Maximum credits exceeded"),
            Retry(None, 401, "HTTP 401: Maximum credits exceeded"),
        ),
        (
            error(403, "The from address does not match a verified Sender Identity", "from"),
            Refused(
                403,
                "HTTP 403: from: The from address does not match a verified Sender Identity - "
                "verify the sender at SendGrid (Settings, Sender Authentication), then resend",
            ),
        ),
        (
            error(403, "access forbidden"),
            Refused(
                403,
                "HTTP 403: access forbidden - give the api_key the scope mail.send, then enable; or"
                " PUT another one",
                disables=True,
            ),
        ),
        (Reply(status=403, body=b"<html>"), Retry(None, 403, "HTTP 403: <html>")),
        (error(413, "too large"), Refused(413, "HTTP 413: too large")),
        (
            Reply(status=429, headers={"X-RateLimit-Reset": "1700000009"}),
            Retry(8_500, 429, "HTTP 429: Too Many Requests"),
        ),
        (
            Reply(status=429, headers={"X-RateLimit-Reset": "1699999999"}),
            Retry(0, 429, "HTTP 429: Too Many Requests"),
        ),
        (
            Reply(status=429, headers={"X-RateLimit-Reset": "soon"}),
            Retry(None, 429, "HTTP 429: Too Many Requests"),
        ),
        (
            Reply(status=429, headers={"Retry-After": "3", "X-RateLimit-Reset": "1700000009"}),
            Retry(3_000, 429, "HTTP 429: Too Many Requests"),
        ),
        (error(500, "An error occurred"), Retry(None, 500, "HTTP 500: An error occurred")),
        (
            Reply(status=200, body=b"<html>Log in"),
            Refused(200, "expected HTTP 202, got HTTP 200: <html>Log in"),
        ),
        (Reply(status=204), Refused(204, "expected HTTP 202, got HTTP 204: No Content")),
    ],
)
async def test_what_each_error_means(
    egress: Egress, provider: StandIn, reply: Reply, expected: Answer
) -> None:
    """What another attempt may heal, when, and what needs somebody to look after it."""
    provider.then(reply)

    assert await send(egress, provider, MAIL) == expected


@pytest.mark.parametrize(
    "body", [b"[]", b"{", b'{"errors": 5}', b'{"errors": [5, {"message": 7}]}', b"[" * 60_000]
)
async def test_an_error_that_says_nothing_is_read_by_its_status(
    egress: Egress, provider: StandIn, body: bytes
) -> None:
    """A proxy's page, or something broken, is no reason to fail in another way."""
    provider.then(Reply(status=400, body=body))

    result = await send(egress, provider, MAIL)

    assert isinstance(result, Refused)
    assert result.error.startswith("HTTP 400: ")
    assert len(result.error) <= 300


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({}, "to is required"),
        ({"to": []}, "to is required"),
        ({"to": 5}, "to"),
        ({"to": ["a@example.com", {"name": "A"}]}, r"to\[1\]\.email"),
        ({"to": "nobody"}, "to is not a mail address"),
        ({"to": "a@b@c"}, "to is not a mail address"),
        ({"to": "a@example.com, b@example.com"}, "to is not a mail address"),
        ({"to": "a@" + "x" * 300}, "254"),
        ({"to": "A\r\nBcc: x@y.z <a@example.com>"}, "line breaks"),
        ({"to": "a@example.com\r\nBcc: b@example.com"}, "to is not a mail address"),
        ({"to": {"email": "a@example.com", "name": "A\nB"}}, "line breaks"),
        ({"to": {"email": "a@example.com", "name": "Doe, Ada"}}, "comma"),
        ({"to": ["a@example.com", "A@example.com"]}, "twice"),
        ({"bcc": "OPS@example.com"}, "twice"),
        ({"cc": [f"a{n}@example.com" for n in range(1_000)]}, "1001 recipients"),
        ({"from": "x"}, "from"),
        ({"subject": 5}, "subject"),
        ({"subject": ""}, "subject"),
        ({"subject": "a\nb"}, "subject"),
        ({"text": 5}, "content"),
        ({"text": ""}, "content"),
        ({"template_id": 5}, "template_id"),
        ({"dynamic_template_data": {"a": 1}}, "template_id"),
        ({"dynamic_template_data": [], "template_id": "d-1"}, "dynamic_template_data"),
        ({"attachments": {}}, "attachments"),
        ({"attachments": [{"content": "aGk="}]}, "filename"),
        ({"attachments": [{"filename": "a"}]}, "content"),
        ({"attachments": [{"filename": "a", "content": "%%"}]}, "base64"),
        ({"attachments": [{"filename": "a\r\nX: y", "content": "aGk="}]}, "line breaks"),
        ({"attachments": [{"filename": "a", "content": "aGk=", "disposition": "x"}]}, "be attach"),
        ({"categories": "alarm"}, "categories"),
        ({"categories": ["a"] * 2}, "categories"),
        ({"categories": [f"{n}" for n in range(11)]}, "categories"),
        ({"categories": ["x" * 256]}, "category"),
        ({"headers": {"X-A": "b\r\nBcc: x@y.z"}}, "headers.X-A"),
        ({"headers": {"X-A\r\nB": "b"}}, "headers"),
        ({"headers": {"subject": "b"}}, "headers.subject"),
        ({"headers": {"X-A": 5}}, "headers.X-A"),
        ({"custom_args": {"a": 5}}, "custom_args.a"),
        ({"custom_args": {"delivery_id": "x"}}, "custom_args.delivery_id"),
        ({"custom_args": {"a": "x" * 10_000}}, "10000"),
        ({"custom_args": []}, "custom_args"),
        ({"send_at": "tomorrow"}, "send_at"),
        ({"send_at": True}, "send_at"),
        ({"reply_to": "x"}, "reply_to"),
        ({"reply_to": "a@example.com", "reply_to_list": []}, "reply_to_list"),
        ({"mail_settings": []}, "mail_settings"),
        ({"text": "x" * 300_000}, "262144"),
        ({"personalizations": []}, "personalizations"),
        ({"personalizations": {}}, "personalizations"),
        ({"personalizations": [{"to": []}]}, "to is required"),
        ({"personalizations": [{"to": "a@example.com"}]}, "to must be a list"),
        ({"personalizations": [{"to": [{"email": "x"}]}]}, r"to\[0\]"),
        ({"personalizations": [{"to": [{"email": "a@b.c"}], "headers": 5}]}, "headers"),
    ],
)
def test_a_wrong_mail_is_refused_at_once(message: dict[str, Any], field: str) -> None:
    """The guest learns it while it runs, with the name of the field."""
    whole = message if not message or message.get("to") == [] else MAIL | message

    with pytest.raises(HostCallRefused, match=field):
        SENDGRID.check_message("send", whole, {"from": SENDER})


@pytest.mark.parametrize(
    "message",
    [
        {**MAIL, "from": None, "categories": None, "headers": None, "attachments": None},
        {**MAIL, "from": None, "template_id": None, "custom_args": None, "mail_settings": None},
        {
            "personalizations": [{"to": [{"email": "a@example.com"}]}],
            "from": None,
            "subject": None,
            "template_id": "d-1",
        },
    ],
)
def test_null_is_nothing(message: dict[str, Any]) -> None:
    """As with every other kind; the settings' sender stands in."""
    body = SENDGRID.check_message("send", message, {"from": "x@example.com"})

    assert body["from"] == {"email": "x@example.com"}
    assert None not in body.values()


def test_somebody_must_have_sent_it() -> None:
    """The message says who, or the connection does."""
    with pytest.raises(HostCallRefused, match="from is required"):
        SENDGRID.check_message("send", MAIL, {})


async def test_what_only_sendgrid_can_judge_is_passed_on(egress: Egress, provider: StandIn) -> None:
    """An address in Unicode is one; SendGrid does not take it, and says so."""
    result = await send(egress, provider, MAIL | {"to": "tür@exämple.com"})

    assert isinstance(result, Refused)
    assert "valid address" in result.error


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (MAIL, "ops@example.com"),
        (MAIL | {"to": ["B <b@x.org>", "A@x.org"], "cc": "c@x.org"}, "a@x.org,b@x.org"),
    ],
)
def test_order_is_kept_for_a_set_of_recipients(message: dict[str, Any], expected: str) -> None:
    """Whatever their order, names and case."""
    checked = SENDGRID.check_message("send", message, {"from": SENDER})

    assert SENDGRID.recipient("send", checked) == expected


def test_many_recipients_are_named_by_few_words() -> None:
    """The name is a key of an index; equal sets still have equal names."""
    many = [f"somebody.{n}@example.com" for n in range(900)]

    def name_of(people: list[str]) -> str | None:
        message = SENDGRID.check_message("send", MAIL | {"to": people}, {"from": SENDER})
        return SENDGRID.recipient("send", message)

    names = {name_of(people) for people in (many, many[::-1], many[:-1])}

    assert len(names) == 2
    assert all(name is not None and len(name) < 100 for name in names)


@pytest.mark.parametrize(
    ("credentials", "settings", "pointer"),
    [
        ({}, {}, "/credentials/api_key"),
        ({"api_key": "sk_123"}, {}, "/credentials/api_key"),
        ({"api_key": "SG.a.b\r\nX: y"}, {}, "/credentials/api_key"),
        ({"api_key": API_KEY, "more": 1}, {}, "/credentials/more"),
        ({"api_key": API_KEY, "webhook_public_key": "x"}, {}, "/credentials/webhook_public_key"),
        ({"api_key": API_KEY}, {"from": "nobody"}, "/settings/from"),
        ({"api_key": API_KEY}, {"from": {"mail": "a@b.c"}}, "/settings/from/mail"),
        ({"api_key": API_KEY}, {"sandbox": "yes"}, "/settings/sandbox"),
        ({"api_key": API_KEY}, {"base_url": "ftp://x"}, "/settings/base_url"),
    ],
)
def test_a_wrong_connection_is_refused_when_it_is_put(
    credentials: dict[str, Any], settings: dict[str, Any], pointer: str
) -> None:
    """The error points at the field, and does not repeat what stands there."""
    with pytest.raises(Invalid) as refused:
        check_connection(SENDGRID, credentials, settings)

    assert refused.value.problems[0].pointer.startswith(pointer)
    assert "SG.a" not in str(refused.value)


@pytest.mark.parametrize("sender", [SENDER, f"Hall <{SENDER}>", {"email": SENDER, "name": "Hall"}])
def test_a_default_sender_may_have_any_form(sender: Any) -> None:
    """As in a message."""
    check_connection(SENDGRID, {"api_key": API_KEY}, {"from": sender})

    checked = SENDGRID.check_message("send", MAIL, {"from": sender})

    assert checked["from"]["email"] == SENDER


@pytest.mark.parametrize(
    ("api_key", "expected"),
    [
        (API_KEY, Sent(200, "an api_key that may send mail (mail.send)")),
        (NO_SCOPE_KEY, "mail.send"),
        (OTHER_KEY, "PUT the connection"),
    ],
)
async def test_a_test_says_whether_the_key_may_send(
    egress: Egress, provider: StandIn, api_key: str, expected: Sent | str
) -> None:
    """It asks for the key's scopes, and sends nobody anything."""
    settings = {"base_url": provider.url}

    result = await SENDGRID.test(egress, {"api_key": api_key}, settings, now_ms=NOW)

    assert provider.accepted == []
    if isinstance(expected, str):
        assert isinstance(result, Refused)
        assert result.disables
        assert expected in result.error
        assert api_key not in result.error
    else:
        assert result == expected


async def test_a_test_of_something_else_is_no_success(egress: Egress, provider: StandIn) -> None:
    """A captive portal answers 200 to everything."""
    provider.then(Reply(body=b"<html>Log in"))

    result = await SENDGRID.test(
        egress, {"api_key": API_KEY}, {"base_url": provider.url}, now_ms=NOW
    )

    assert isinstance(result, Refused)


async def test_the_sdk_does_not_log_the_key(
    egress: Egress, provider: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    """Its debug log would have every header."""
    caplog.set_level(logging.DEBUG)

    await send(egress, provider, MAIL)

    assert API_KEY not in caplog.text
    assert sdk.__version__ is not None


@pytest.mark.slow
def test_the_sdk_is_loaded_when_it_is_needed_alone() -> None:
    """The engine starts without its 8 MB, and checks messages without it."""
    program = """
import sys
from engine.connectors import CONNECTORS
mail = {"to": "a@b.c", "subject": "x", "text": "x"}
CONNECTORS["sendgrid"].check_message("send", mail, {"from": "a@b.c"})
CONNECTORS["sendgrid"].check({"api_key": "SG.a.b"}, {})
print([name for name in sys.modules if name.split(".")[0] in ("sendgrid", "python_http_client")])
"""

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )

    assert done.stdout == "[]\n"


# The event webhook.


P256 = bytes.fromhex("2a8648ce3d030107")  # the curve's OID


def told(
    events: Any, *, key: Any = None, credentials: dict[str, Any] | None = None, **headers: str
) -> list[Told]:
    key = key or new_key()
    signed_headers, body = signed(events, key)
    if credentials is None:
        credentials = {"api_key": API_KEY, "webhook_public_key": public_text(key)}
    check_connection(SENDGRID, credentials, {})
    callback = Callback(
        url="https://x/v1/callbacks/p/S", headers=signed_headers | headers, body=body
    )
    return SENDGRID.callback(credentials, {}, callback)


def test_it_tells_later() -> None:
    """The API finds out by the port."""
    assert isinstance(SENDGRID, TellsLater)


@pytest.mark.parametrize(
    ("word", "more", "status", "final", "error_text"),
    [
        ("processed", {}, "processed", None, None),
        ("deferred", {"response": "400 try again"}, "deferred", None, None),
        ("delivered", {"response": "250 OK"}, "delivered", "delivered", None),
        (
            "bounce",
            {"type": "bounce", "status": "5.1.1", "reason": "550 no such user"},
            "bounce",
            "failed",
            "bounce: ops@example.com: 5.1.1: 550 no such user",
        ),
        (
            "bounce",
            {"type": "blocked", "reason": "421 greylisted"},
            "blocked",
            "failed",
            "blocked: ops@example.com: 421 greylisted",
        ),
        (
            "dropped",
            {"reason": "Bounced Address"},
            "dropped",
            "failed",
            "dropped: ops@example.com: Bounced Address",
        ),
    ],
)
def test_what_each_event_says(
    word: str, more: dict[str, Any], status: str, final: Any, error_text: str | None
) -> None:
    """Delivered, or not, or nothing yet; found by the argument that we gave the mail."""
    assert told([event(word, DELIVERY, **more)]) == [
        Told(
            delivery_id=DELIVERY,
            status=status,
            final=final,
            error=error_text,
            message_id="R14554qsAGSkiKYYviJN34",
        )
    ]


@pytest.mark.parametrize(
    "word", ["open", "click", "spamreport", "unsubscribe", "group_resubscribe"]
)
def test_what_readers_do_is_passed_over(word: str) -> None:
    """It would hide whether the mail arrived."""
    assert told([event(word, DELIVERY)]) == []


def test_what_is_not_ours_is_passed_over() -> None:
    """The webhook is the account's: others send by it too, and it may hold anything."""
    foreign = event("delivered", DELIVERY)
    del foreign["delivery_id"]

    assert (
        told([foreign, 5, None, {}, {"event": 7, "delivery_id": [1]}, {"delivery_id": "x"}]) == []
    )


def test_events_are_told_oldest_first() -> None:
    """SendGrid posts them in any order."""
    events = [
        event("delivered", DELIVERY, timestamp=3),
        event("processed", DELIVERY, timestamp=1),
        event("deferred", DELIVERY, timestamp=2),
        event("dropped", "dlv_2", timestamp="x"),
    ]

    assert [one.status for one in told(events)] == ["dropped", "processed", "deferred", "delivered"]


def test_only_what_sendgrid_signed_is_heard() -> None:
    """Another key, another timestamp, another body, no signature: nothing is told."""
    key, other = new_key(), new_key()
    credentials = {"api_key": API_KEY, "webhook_public_key": public_text(key)}
    events = [event("bounce", DELIVERY)]
    headers, body = signed(events, key)
    signature = "x-twilio-email-event-webhook-signature"
    other_time = {"x-twilio-email-event-webhook-timestamp": "1700000001"}
    wrong = [
        signed(events, other)[0],
        headers | other_time,
        {},
        *(headers | {signature: text} for text in ("", "%%%", "aGk=", "é")),
    ]
    refused = [Callback(url="", headers=one, body=body) for one in wrong]
    refused.append(Callback(url="", headers=headers, body=body + b" "))

    good = SENDGRID.callback(credentials, {}, Callback(url="", headers=headers, body=body))
    for callback in refused:
        with pytest.raises(CallbackRefused):
            SENDGRID.callback(credentials, {}, callback)

    assert len(good) == 1


def test_a_key_to_verify_with_is_needed() -> None:
    """Without one anybody could say that a mail arrived; the error says what to do."""
    with pytest.raises(CallbackRefused, match="PUT it with the key"):
        told([event("delivered", DELIVERY)], credentials={"api_key": API_KEY})


@pytest.mark.parametrize("body", [b"", b"{}", b"not json", b"\xff\xfe", b'"x"', b"[" * 90_000])
def test_a_signed_body_that_is_no_list_is_refused(body: bytes) -> None:
    """It is not what SendGrid posts."""
    with pytest.raises(CallbackRefused):
        told(body)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda der: der[:-8],
        lambda der: der.replace(P256, P256[:-1] + b"\x63"),  # a curve that nobody knows
        lambda der: der.replace(P256, P256[:-1] + b"\x01"),  # one that is not supported
        lambda der: der[:27] + bytes(64),  # no point of the curve
    ],
)
def test_a_key_that_is_none_is_refused_not_broken(spoil: Callable[[bytes], bytes]) -> None:
    """It begins like one, so it could be stored."""
    der = spoil(base64.b64decode(public_text(new_key())))
    credentials = {"api_key": API_KEY, "webhook_public_key": base64.b64encode(der).decode()}

    with pytest.raises(CallbackRefused):
        told([event("delivered", DELIVERY)], credentials=credentials)


def test_the_stand_in_signs_as_sendgrids_own_code_verifies() -> None:
    """So that a mistake of ours in the scheme is no test that passes."""
    key = new_key()
    headers, body = signed([event("delivered", DELIVERY)], key)

    assert EventWebhook(public_text(key)).verify_signature(
        body.decode(),
        headers["x-twilio-email-event-webhook-signature"],
        headers["x-twilio-email-event-webhook-timestamp"],
    )
    assert json.loads(body)[0]["delivery_id"] == DELIVERY
    assert msgspec.json.decode(body)
