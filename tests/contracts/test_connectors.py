"""Each connector against a real server that answers by the provider's published rules."""

import asyncio
import base64
import hashlib
import hmac
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_network
from typing import Any

import httpx
import pytest

from engine.connectors import CONNECTORS
from engine.connectors.contract import Answer, Refused, Retry, Sent, retry_after_ms
from engine.egress import Egress
from engine.errors import HostCallRefused, Invalid
from examples.slack_stand_in import SlackStandIn, Trouble
from tests.standins.http_server import Received, answer, http_server

NOW = 1_700_000_000_500
SECRETS = ["whsec_" + base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2)]


@pytest.fixture
def slack() -> Iterator[SlackStandIn]:
    with SlackStandIn() as stand_in:
        yield stand_in


@pytest.fixture
async def egress() -> AsyncIterator[Egress]:
    egress = Egress([ip_network("127.0.0.0/8")])
    yield egress
    await egress.close()


async def send(
    egress: Egress,
    kind: str,
    credentials: dict[str, Any],
    payload: dict[str, Any],
    settings: dict[str, Any] | None = None,
) -> Answer:
    connector = CONNECTORS[kind]
    connector.check_credentials(credentials)
    connector.check_settings(settings or {})
    return await connector.send(
        egress,
        credentials,
        settings or {},
        connector.check_payload(payload),
        "dlv_1",
        1,
        now_ms=NOW,
    )


@pytest.mark.parametrize(
    "payload",
    [
        {"text": "grüße ☃", "username": "bot", "icon_emoji": ":ghost:"},
        {"blocks": [{"type": "divider"}]},
        {"attachments": [{"fallback": "x"}]},
    ],
)
async def test_slack_takes_a_message(
    slack: SlackStandIn, egress: Egress, payload: dict[str, Any]
) -> None:
    """It arrives as it was given, and "ok" is success."""
    result = await send(egress, "slack", {"webhook_url": slack.webhook_url}, payload)

    assert result == Sent(200)
    assert slack.messages == [payload]


async def test_slack_base_url_leads_elsewhere(slack: SlackStandIn, egress: Egress) -> None:
    """The path of the webhook URL stays: a stand-in sees what Slack would."""
    credentials = {"webhook_url": "https://hooks.slack.com/services/T1/B1/X1"}

    result = await send(egress, "slack", credentials, {"text": "x"}, {"base_url": slack.url})

    assert result == Sent(200)


@pytest.mark.parametrize(
    ("trouble", "expected"),
    [
        (Trouble(400, "invalid_payload"), Refused(400, "HTTP 400: invalid_payload")),
        (Trouble(403, "action_prohibited"), Refused(403, "HTTP 403: action_prohibited")),
        (Trouble(404, "no_service"), Refused(404, "HTTP 404: no_service")),
        (Trouble(410, "channel_is_archived"), Refused(410, "HTTP 410: channel_is_archived")),
        (
            Trouble(429, "rate_limited", {"Retry-After": "30"}),
            Retry(30_000, 429, "HTTP 429: rate_limited"),
        ),
        (Trouble(500, "rollup_error"), Retry(None, 500, "HTTP 500: rollup_error")),
        (
            Trouble(503, "", {"Retry-After": "Tue, 14 Nov 2023 22:13:25 GMT"}),
            Retry(4_500, 503, "HTTP 503: Service Unavailable"),
        ),
        (
            Trouble(302, "", {"Location": "http://127.0.0.1/x"}),
            Refused(302, "HTTP 302: a redirect, which is not followed; set the final URL"),
        ),
    ],
    ids=lambda value: f"{value.status}",
)
async def test_slacks_errors_are_told_apart(
    slack: SlackStandIn, egress: Egress, trouble: Trouble, expected: Answer
) -> None:
    """What another attempt may heal, and what it will not."""
    slack.then(trouble)

    result = await send(egress, "slack", {"webhook_url": slack.webhook_url}, {"text": "x"})

    assert result == expected


async def test_slack_that_says_something_else_is_no_success(egress: Egress) -> None:
    """A captive portal answers 200 to everything."""

    async def portal(received: Received) -> bytes:
        return answer(200, b"<html>Log in")

    async with http_server(portal) as server:
        result = await send(egress, "slack", {"webhook_url": server.url}, {"text": "x"})

    assert result == Refused(200, "expected the answer 'ok', got HTTP 200: <html>Log in")


async def test_a_dropped_connection_and_a_closed_port_are_tried_again(
    slack: SlackStandIn, egress: Egress
) -> None:
    """There was no answer, so nothing is known."""
    slack.then(Trouble(None))

    dropped = await send(egress, "slack", {"webhook_url": slack.webhook_url}, {"text": "x"})
    closed = await send(egress, "slack", {"webhook_url": "http://127.0.0.1:1/"}, {"text": "x"})

    assert isinstance(dropped, Retry)
    assert isinstance(closed, Retry)


async def test_a_slow_provider_is_tried_again(
    egress: Egress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its time is over."""

    async def slow(received: Received) -> bytes:
        await asyncio.sleep(60)
        return b""

    monkeypatch.setattr("engine.connectors.contract.SEND_MS_MAX", 50)
    async with http_server(slow) as server:
        result = await send(egress, "slack", {"webhook_url": server.url}, {"text": "x"})

    assert result == Retry(None, None, "127.0.0.1 did not answer within 50 ms")


@pytest.mark.parametrize("kind", sorted(CONNECTORS))
async def test_an_address_inside_is_refused(kind: str) -> None:
    """Connectors go through the same guard; the error shows no credential."""
    url = "http://10.0.0.5/services/T/B/secret"
    credentials = {"webhook_url": url} if kind == "slack" else {"url": url}
    egress = Egress(())

    result = await send(egress, kind, credentials, {"text": "x"})
    await egress.close()

    assert isinstance(result, Refused)
    assert "CLOUDCODE_EGRESS_ALLOW=10.0.0.5/32" in result.error
    assert "secret" not in result.error


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({}, "text or blocks"),
        ({"text": ""}, "text or blocks"),
        ({"text": 5}, "text"),
        ({"text": "x" * 40_001}, "text"),
        ({"blocks": {}}, "blocks"),
        ({"blocks": ["x"]}, "blocks"),
        ({"blocks": [{}] * 51}, "blocks"),
        ({"text": "x", "username": []}, "username"),
        ({"text": "x", "more": "x" * 300_000}, "262144"),
    ],
)
def test_a_wrong_slack_payload_is_refused_at_once(payload: dict[str, Any], field: str) -> None:
    """The guest learns it while it runs, with the name of the field."""
    with pytest.raises(HostCallRefused, match=field):
        CONNECTORS["slack"].check_payload(payload)


@pytest.mark.parametrize(
    ("kind", "credentials", "pointer"),
    [
        ("slack", {}, "/credentials/webhook_url"),
        ("slack", {"webhook_url": "hooks.slack.com/x"}, "/credentials/webhook_url"),
        ("slack", {"webhook_url": "ftp://h/x"}, "/credentials/webhook_url"),
        ("slack", {"webhook_url": "https://h/x", "token": "x"}, "/credentials/token"),
        ("webhook", {"url": "https://u:p@h/"}, "/credentials/url"),
        ("webhook", {"url": "https://h/", "secret": "x"}, "/credentials/secret"),
        ("webhook", {"url": "https://h/", "secret": "whsec_c2hvcnQ="}, "/credentials/secret"),
        ("webhook", {"url": "https://h/", "secrets": []}, "/credentials/secrets"),
        ("webhook", {"url": "https://h/", "secrets": [SECRETS[0], 5]}, "/credentials/secrets/1"),
    ],
)
def test_wrong_credentials_are_refused_when_they_are_set(
    kind: str, credentials: dict[str, Any], pointer: str
) -> None:
    """The error points at the field."""
    with pytest.raises(Invalid) as refused:
        CONNECTORS[kind].check_credentials(credentials)

    assert refused.value.problems[0].pointer == pointer


@pytest.mark.parametrize("count", [0, 1, 2])
async def test_a_webhook_is_signed_by_every_secret(egress: Egress, count: int) -> None:
    """Headers, and a signature that the receiver's own code accepts."""

    async def accept(received: Received) -> bytes:
        return answer(204)

    async with http_server(accept) as server:
        credentials: dict[str, Any] = {"url": f"{server.url}/hook"}
        if count == 1:
            credentials["secret"] = SECRETS[0]
        elif count:
            credentials["secrets"] = SECRETS
        result = await send(egress, "webhook", credentials, {"any": ["json", 1]})

    (received,) = server.received
    assert result == Sent(204)
    assert received.headers["webhook-id"] == "dlv_1"
    assert received.headers["webhook-timestamp"] == "1700000000"
    assert received.headers["content-type"] == "application/json"
    assert received.body == b'{"any":["json",1]}'
    expected = [_signature(secret, received.body) for secret in SECRETS[:count]]
    assert received.headers.get("webhook-signature", "").split() == expected


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (200, Sent),
        (299, Sent),
        (301, Refused),
        (400, Refused),
        (410, Refused),
        (408, Retry),
        (409, Retry),
        (425, Retry),
        (429, Retry),
        (500, Retry),
    ],
)
async def test_a_webhooks_status_decides(egress: Egress, status: int, expected: type) -> None:
    """2xx alone is success."""

    async def respond(received: Received) -> bytes:
        return answer(status, b"because")

    async with http_server(respond) as server:
        result = await send(egress, "webhook", {"url": server.url}, {})

    assert type(result) is expected


@pytest.mark.parametrize(
    ("value", "wait_ms"),
    [("0", 0), ("7", 7_000), ("9" * 50, 999_999_999_000), ("-1", None), ("soon", None), ("", None)],
)
def test_retry_after_is_read_with_care(value: str, wait_ms: int | None) -> None:
    """It comes from outside."""
    assert retry_after_ms(value, NOW) == wait_ms


async def test_the_stand_in_shows_what_it_received(slack: SlackStandIn) -> None:
    """As the demo reads it; and it refuses what Slack would refuse."""
    async with httpx.AsyncClient(trust_env=False) as client:
        ok = await client.post(slack.webhook_url, json={"text": "hello"})
        no_text = await client.post(slack.webhook_url, json={"text": ""})
        no_json = await client.post(slack.webhook_url, content=b"text=hello")
        elsewhere = await client.post(f"{slack.url}/other", json={"text": "x"})
        received = (await client.get(f"{slack.url}/received")).json()

    assert (ok.status_code, ok.text) == (200, "ok")
    assert (no_text.status_code, no_text.text) == (400, "no_text")
    assert (no_json.status_code, no_json.text) == (400, "invalid_payload")
    assert (elsewhere.status_code, elsewhere.text) == (404, "no_service")
    assert received == {"count": 1, "messages": [{"text": "hello"}]}


def _signature(secret: str, body: bytes) -> str:
    key = base64.b64decode(secret[len("whsec_") :])
    mac = hmac.new(key, b"dlv_1.1700000000." + body, hashlib.sha256)
    return "v1," + base64.b64encode(mac.digest()).decode()
