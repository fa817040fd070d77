"""The webhook connector beyond its page's table: signatures, secrets, what a request has."""

import base64
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from standardwebhooks import Webhook as Receiver
from standardwebhooks.webhooks import WebhookVerificationError

from engine.connectors import CONNECTORS
from engine.connectors.contract import Answer, Outgoing, Refused, Retry, Sent, check_connection
from engine.egress import Egress
from engine.errors import HostCallRefused, Invalid
from tests.standins.provider import Asked, Reply
from tests.standins.providers.webhook import OTHER_SECRET, SECRET, StandIn

WEBHOOK = CONNECTORS["webhook"]
NOW = 1_700_000_000_500
DELIVERY = "dlv_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f"
SEED = bytes(range(100, 132))
SIGNING_KEY = "whsk_" + base64.b64encode(SEED).decode()


@pytest.fixture
def receiver() -> Iterator[StandIn]:
    with StandIn() as stand_in:
        yield stand_in


async def send(
    egress: Egress,
    receiver: StandIn,
    credentials: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    message: dict[str, Any] | None = None,
    attempt: int = 1,
    now_ms: int = NOW,
) -> Answer:
    here = receiver.connection()["credentials"]
    credentials = here if credentials is None else {"url": here["url"]} | credentials
    check_connection(WEBHOOK, credentials, settings or {})
    return await WEBHOOK.send(
        egress,
        Outgoing(
            action="send",
            message=WEBHOOK.check_message("send", message or {"a": 1}, settings or {}),
            credentials=credentials,
            settings=settings or {},
            delivery_id=DELIVERY,
            attempt=attempt,
            now_ms=now_ms,
        ),
    )


def verified(asked: Asked, secret: str) -> Any:
    return Receiver(secret).verify(asked.body, dict(asked.headers))


async def test_the_receivers_own_library_takes_it(egress: Egress, receiver: StandIn) -> None:
    """With its clock; the message comes out as it went in."""
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    message = {"any": ["json", 1, None], "text": "grüße ☃"}

    answer = await send(egress, receiver, message=message, now_ms=now_ms)

    assert answer == Sent(200)
    (asked,) = receiver.asked
    assert verified(asked, SECRET) == message
    assert asked.headers["content-type"] == "application/json"
    with pytest.raises(WebhookVerificationError):
        verified(asked, OTHER_SECRET)


@pytest.mark.parametrize("of_receiver", [SECRET, OTHER_SECRET])
async def test_while_a_secret_changes_both_fit(
    egress: Egress, receiver: StandIn, of_receiver: str
) -> None:
    """The newest one signs first; the receiver may have either."""
    receiver.secrets = [of_receiver]

    answer = await send(egress, receiver, {"secrets": [OTHER_SECRET, SECRET]})

    assert answer == Sent(200)
    signatures = receiver.asked[0].headers["webhook-signature"].split()
    assert [text.partition(",")[0] for text in signatures] == ["v1", "v1"]
    assert signatures[0] != signatures[1]


@pytest.mark.parametrize("bare", [True, False])
async def test_a_signing_key_signs_for_its_public_key(
    egress: Egress, receiver: StandIn, bare: bool
) -> None:
    """`v1a`: ed25519 over the same text; beside the secret's signature, or alone."""
    credentials = {"signing_key": SIGNING_KEY} | ({} if bare else {"secret": SECRET})

    await send(egress, receiver, credentials)

    (asked,) = receiver.asked
    *others, last = asked.headers["webhook-signature"].split()
    version, _, signature = last.partition(",")
    public = Ed25519PrivateKey.from_private_bytes(SEED).public_key()
    public.verify(base64.b64decode(signature), f"{DELIVERY}.1700000000.".encode() + asked.body)
    assert (version, len(others)) == ("v1a", 0 if bare else 1)
    with pytest.raises(InvalidSignature):
        public.verify(base64.b64decode(signature), b"another text")


async def test_without_a_key_nothing_is_signed(egress: Egress, receiver: StandIn) -> None:
    """And nothing pretends to be."""
    await send(egress, receiver, {})

    (asked,) = receiver.asked
    assert "webhook-signature" not in asked.headers
    assert asked.headers["webhook-id"] == DELIVERY


async def test_attempts_differ_in_nothing_but_their_time(egress: Egress, receiver: StandIn) -> None:
    """The id is the receiver's key against doubles, and the body stays the same to the byte."""
    receiver.then(Reply(status=500, taken=True), Reply(fault="drop", taken=True))
    settings = {"envelope": True, "type": "alarm.raised"}
    answers = [
        await send(
            egress, receiver, None, settings, {"z": 1, "a": 2}, attempt, NOW + attempt * 1000
        )
        for attempt in (1, 2, 3)
    ]

    assert [type(answer) for answer in answers] == [Retry, Retry, Sent]
    assert len({asked.body for asked in receiver.asked}) == 1
    assert {asked.headers["webhook-id"] for asked in receiver.asked} == {DELIVERY}
    assert len({asked.headers["webhook-timestamp"] for asked in receiver.asked}) == 3
    assert len(receiver.accepted) == 1
    assert receiver.refused == []


async def test_one_attempt_is_one_request(egress: Egress, receiver: StandIn) -> None:
    """Whatever is answered."""
    for status in (200, 301, 307, 400, 410, 429, 503):
        receiver.asked.clear()
        receiver.then(
            Reply(status=status, headers={"Location": receiver.url, "Retry-After": "0"}, taken=True)
        )
        await send(egress, receiver)
        assert len(receiver.asked) == 1


async def test_an_envelope_says_what_it_is_and_when_its_cause_was(
    egress: Egress, receiver: StandIn
) -> None:
    """As the standard recommends; the time is that of the run's cause, which its id carries."""
    await send(egress, receiver, None, {"envelope": True, "type": "alarm.raised"}, {"door": 7})

    assert receiver.accepted == [
        {"type": "alarm.raised", "timestamp": "2025-02-10T16:47:54.800Z", "data": {"door": 7}}
    ]


async def test_settings_change_the_request(egress: Egress, receiver: StandIn) -> None:
    """Method, more headers, and another server with the path of the URL."""
    settings = {"method": "PUT", "headers": {"X-Tenant": "plant 7"}, "base_url": receiver.url + "/"}
    credentials = {"url": "https://example.com/hooks/one?tenant=7", "secret": SECRET}

    answer = await send(egress, receiver, credentials, settings)

    assert answer == Sent(200)
    (asked,) = receiver.asked
    assert (asked.method, asked.headers["x-tenant"]) == ("PUT", "plant 7")


@pytest.mark.parametrize("status", [200, 201, 202, 299])
async def test_any_2xx_is_success(egress: Egress, receiver: StandIn, status: int) -> None:
    """Whatever the body says."""
    receiver.then(Reply(status=status, body=b"no!"))

    assert await send(egress, receiver) == Sent(status)


async def test_gone_is_the_one_refusal(egress: Egress, receiver: StandIn) -> None:
    """410: the receiver wants nothing more, ever."""
    receiver.then(Reply(status=410, body=b"moved"))

    gone = await send(egress, receiver)

    assert gone == Refused(410, "HTTP 410: moved; the receiver wants nothing more", disables=True)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 415, 421, 422, 423, 451, 499])
async def test_what_is_not_taken_is_tried_again(
    egress: Egress, receiver: StandIn, status: int
) -> None:
    """Standard Webhooks: whatever is not 2xx; when the receiver says, if it does."""
    later = {"Retry-After": "60"}
    receiver.then(Reply(status=status, body=b"no"), Reply(status=status, headers=later, body=b"no"))

    answers = [await send(egress, receiver) for _ in range(2)]

    assert answers == [Retry(wish, status, f"HTTP {status}: no") for wish in (None, 60_000)]


async def test_the_test_of_a_connection_is_a_signed_message(
    egress: Egress, receiver: StandIn
) -> None:
    """The receiver can tell it by its type; a wrong secret shows."""
    credentials = receiver.connection()["credentials"]

    good = await WEBHOOK.test(egress, credentials, {}, now_ms=NOW)
    bad = await WEBHOOK.test(egress, credentials | {"secret": OTHER_SECRET}, {}, now_ms=NOW)

    assert good == Sent(200, "127.0.0.1 took a signed test")
    assert receiver.accepted == [
        {"type": "cloudcode.test", "timestamp": "2023-11-14T22:13:20.500Z", "data": {}}
    ]
    assert bad == Retry(None, 401, "HTTP 401: the signature does not fit")


async def test_an_address_inside_is_refused_without_its_path(receiver: StandIn) -> None:
    """The guard of every request; a token in the path is not shown."""
    egress = Egress(())

    answer = await send(egress, receiver, {"url": "http://10.0.0.5/hooks/hidden-token"})
    await egress.close()

    assert isinstance(answer, Refused)
    assert "CLOUDCODE_EGRESS_ALLOW=10.0.0.5/32" in answer.error
    assert "hidden" not in answer.error


@pytest.mark.parametrize(
    ("credentials", "pointer"),
    [
        ({}, "/credentials/url"),
        ({"url": "example.com/x"}, "/credentials/url"),
        ({"url": "ftp://h/"}, "/credentials/url"),
        ({"url": "https://u:p@h/"}, "/credentials/url"),
        ({"url": "https://h:6667/"}, "/credentials/url"),
        ({"url": "https://h/", "token": "x"}, "/credentials"),
        ({"url": "https://h/", "secret": "x"}, "/credentials/secret"),
        ({"url": "https://h/", "secret": "whsec_c2hvcnQ="}, "/credentials/secret"),
        ({"url": "https://h/", "secret": "whsec_not base64"}, "/credentials/secret"),
        ({"url": "https://h/", "secrets": []}, "/credentials/secrets"),
        ({"url": "https://h/", "secrets": [SECRET] * 5}, "/credentials/secrets"),
        ({"url": "https://h/", "secrets": [SECRET, "whsec_x"]}, "/credentials/secrets/1"),
        ({"url": "https://h/", "secret": SECRET, "secrets": [SECRET]}, "/credentials/secrets"),
        ({"url": "https://h/", "signing_key": SECRET}, "/credentials/signing_key"),
        ({"url": "https://h/", "signing_key": "whsk_c2hvcnQ="}, "/credentials/signing_key"),
    ],
)
def test_wrong_credentials_are_refused_when_they_are_put(
    credentials: dict[str, Any], pointer: str
) -> None:
    """The error points at the field, and shows nothing of it."""
    with pytest.raises(Invalid) as refused:
        check_connection(WEBHOOK, credentials, {})

    assert refused.value.problems[0].pointer.startswith(pointer)
    assert SECRET[6:] not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "pointer"),
    [
        ({"method": "GET"}, "/settings/method"),
        ({"envelope": True}, "/settings/type"),
        ({"type": "alarm.raised"}, "/settings/type"),
        ({"envelope": True, "type": "no spaces"}, "/settings/type"),
        ({"headers": {"Host": "h"}}, "/settings/headers/Host"),
        ({"headers": {"content-length": "5"}}, "/settings/headers/content-length"),
        ({"headers": {"Webhook-Id": "1"}}, "/settings/headers/Webhook-Id"),
        ({"headers": {"Connection": "close"}}, "/settings/headers/Connection"),
        ({"headers": {"cloudcode-via": "x"}}, "/settings/headers/cloudcode-via"),
        ({"headers": {"CDN-Loop": "x"}}, "/settings/headers/CDN-Loop"),
        ({"headers": {"Authorization": "Bearer x"}}, "/settings/headers/Authorization"),
        ({"headers": {"X-A": "a\r\nX-B: b"}}, "/settings/headers/X-A"),
        ({"headers": {"X-A": "☃"}}, "/settings/headers/X-A"),
        ({"headers": {"X A": "a"}}, "/settings/headers/X A"),
        ({"headers": {"X-A": 5}}, "/settings/headers"),
        ({"headers": {f"X-{n}": "a" for n in range(17)}}, "/settings/headers"),
        ({"base_url": "h"}, "/settings/base_url"),
    ],
)
def test_wrong_settings_are_refused_when_they_are_put(
    settings: dict[str, Any], pointer: str
) -> None:
    """Headers are not a way around what the engine says of a request."""
    with pytest.raises(Invalid) as refused:
        check_connection(WEBHOOK, {"url": "https://h/"}, settings)

    assert refused.value.problems[0].pointer.startswith(pointer)


def test_a_message_of_any_shape_but_not_of_any_size() -> None:
    """What it means is the receiver's to say."""
    assert WEBHOOK.check_message("send", {}, {}) == {}
    with pytest.raises(HostCallRefused, match="262144"):
        WEBHOOK.check_message("send", {"x": "x" * 300_000}, {})


def test_the_schedule_is_that_of_the_standard() -> None:
    """Ten attempts, the last after three days and more."""
    habits = WEBHOOK.habits

    assert habits.attempts == 10
    assert sum(habits.waits_s) == 75 * 3600 + 35 * 60 + 5
    assert habits.max_age_s == 5 * 86_400
    assert habits.ordered is False


def test_all_of_a_connection_is_in_order_if_anything_is() -> None:
    """One recipient: `settings.ordered` decides whether that matters."""
    assert WEBHOOK.recipient("send", {"a": 1}) == WEBHOOK.recipient("send", {"b": 2}) == "*"
