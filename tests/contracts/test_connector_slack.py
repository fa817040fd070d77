"""The connector of Slack, beyond its page: against a stand-in that keeps Slack's rules."""

import asyncio
import json
import logging
import ssl
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.connectors.contract import (
    Answer,
    Outgoing,
    Refused,
    Retry,
    Sent,
    check_connection,
)
from engine.connectors.slack import _FLAGS, _LISTS, _STRINGS, ERRORS, WEBHOOK_ERRORS, Slack
from engine.egress import Egress
from engine.errors import HostCallRefused, Invalid
from examples.slack_stand_in import SlackStandIn, Trouble
from tests.standins.provider import HTTP_FAULTS, Reply
from tests.standins.providers.slack import PATH, TOKEN, StandIn, failure

NOW = 1_700_000_000_500
TLS = ssl.create_default_context()  # once: it takes a tenth of a second
HOOK = {"webhook_url": f"https://hooks.slack.com{PATH}"}
SECRETS = (TOKEN, PATH, PATH.rpartition("/")[2])

connector = Slack()


@pytest.fixture
def slack() -> Iterator[StandIn]:
    with StandIn() as stand_in:
        yield stand_in


@pytest.fixture
def hooks() -> Iterator[SlackStandIn]:
    """The stand-in of the demo: webhooks alone."""
    with SlackStandIn() as stand_in:
        yield stand_in


async def send(
    egress: Egress,
    credentials: dict[str, Any],
    given: dict[str, Any],
    message: dict[str, Any] | None = None,
    timeout_ms: int = 700,
) -> Answer:
    check_connection(connector, credentials, given)
    checked = connector.check_message(
        "send", {"text": "hot"} if message is None else message, given
    )
    outgoing = Outgoing(
        action="send",
        message=json.loads(json.dumps(checked)),
        credentials=credentials,
        settings=given,
        delivery_id="dlv_1",
        attempt=1,
        now_ms=NOW,
        timeout_ms=timeout_ms,
    )
    assert not [secret for secret in SECRETS if secret in repr(outgoing)]
    return await connector.send(egress, outgoing)


async def by_token(
    slack: StandIn, egress: Egress, message: dict[str, Any] | None = None, **given: Any
) -> Answer:
    connection = slack.connection()
    return await send(egress, connection["credentials"], connection["settings"] | given, message)


async def by_hook(slack: StandIn, egress: Egress, message: dict[str, Any] | None = None) -> Answer:
    return await send(egress, HOOK, {"base_url": slack.url}, message)


@pytest.mark.parametrize("error", sorted(ERRORS))
async def test_each_error_is_judged_as_the_table_says(
    slack: StandIn, egress: Egress, error: str
) -> None:
    """With the remedy and Slack's word in the error; one request, whatever comes."""
    slack.then(failure(error))

    answer = await by_token(slack, egress)

    meaning = ERRORS[error]
    assert isinstance(answer, Retry if meaning.then == "retry" else Refused)
    assert answer.error.startswith(f"Slack: {error}")
    assert answer.error.endswith(meaning.remedy)
    if isinstance(answer, Refused):
        assert answer.disables == (meaning.then == "disables")
    else:
        assert answer.after_ms == (meaning.after_s * 1000 if meaning.after_s else None)
    assert len(slack.asked) == 1


@pytest.mark.parametrize("error", sorted(WEBHOOK_ERRORS))
async def test_each_error_of_a_webhook_is_judged_as_the_table_says(
    slack: StandIn, egress: Egress, error: str
) -> None:
    """By its text, whatever the status."""
    slack.then(Reply(status=400, body=error.encode() + b"\n"))

    answer = await by_hook(slack, egress)

    meaning = WEBHOOK_ERRORS[error]
    assert isinstance(answer, Retry if meaning.then == "retry" else Refused)
    assert answer.error == f"Slack: {error}; {meaning.remedy}"
    if isinstance(answer, Refused):
        assert answer.disables == (meaning.then == "disables")
    assert len(slack.asked) == 1


@pytest.mark.parametrize("name", HTTP_FAULTS)
@pytest.mark.parametrize("hook", [False, True])
async def test_one_attempt_is_one_request(
    slack: StandIn, egress: Egress, name: str, hook: bool
) -> None:
    """The SDK tries nothing again by itself, as it would by default."""
    slack.then(HTTP_FAULTS[name])
    credentials = HOOK if hook else slack.connection()["credentials"]
    given = {"base_url": slack.url, "channel": "C0ALARMS"}

    answer = await send(egress, credentials, given, timeout_ms=300)

    assert not isinstance(answer, Sent)
    assert len(slack.asked) == 1


@pytest.mark.parametrize(
    ("trouble", "expected"),
    [
        (Trouble(400, "strange"), Refused(400, "HTTP 400: strange")),
        (
            Trouble(429, "rate_limited", {"Retry-After": "30"}),
            Retry(30_000, 429, "Slack: rate_limited; set a lower rate for the connection"),
        ),
        (Trouble(500, "rollup_error"), Retry(None, 500, "Slack: rollup_error; Slack's own error")),
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
async def test_other_answers_are_judged_by_their_status(
    hooks: SlackStandIn, egress: Egress, trouble: Trouble, expected: Answer
) -> None:
    """What another attempt may heal, and what it will not."""
    hooks.then(trouble)

    assert await send(egress, {"webhook_url": hooks.webhook_url}, {}) == expected


@pytest.mark.parametrize(
    "payload",
    [
        {"text": "grüße ☃", "username": "bot\r\nX-Evil: 1", "icon_emoji": ":ghost:"},
        {"blocks": [{"type": "divider"}]},
        {"attachments": [{"fallback": "x"}]},
        {"text": "x", "a_field_of_tomorrow": {"deep": [1, None]}},
    ],
)
async def test_a_message_arrives_as_it_was_given(
    slack: StandIn, hooks: SlackStandIn, egress: Egress, payload: dict[str, Any]
) -> None:
    """Both ways; a later field of Slack's is passed on."""
    by_webhook = await send(egress, {"webhook_url": hooks.webhook_url}, {}, payload)
    with_token = await by_token(slack, egress, payload)

    assert by_webhook == Sent(200)
    assert with_token == Sent(200, "C0ALARMS/1503435956.000001")
    assert hooks.messages == [payload]
    assert slack.accepted == [payload | {"channel": "C0ALARMS"}]
    (asked,) = slack.asked
    assert asked.headers["authorization"] == f"Bearer {TOKEN}"
    assert asked.headers["user-agent"] == "cloudcode-engine"
    assert "x-evil" not in asked.headers


@pytest.mark.parametrize(
    ("message", "channel", "thread"),
    [
        ({"thread_ts": "C0ALARMS/1.5"}, "C0ALARMS", "1.5"),
        ({"thread_ts": "1.5"}, "C0NEWS", "1.5"),
        ({"thread_ts": "C0OLD/1.5", "channel": "C0ALARMS"}, "C0ALARMS", "1.5"),
        ({"thread_ts": None}, "C0NEWS", None),
    ],
)
def test_a_message_id_puts_a_reply_in_its_thread(
    message: dict[str, Any], channel: str, thread: str | None
) -> None:
    """The channel of the thread goes before the settings', and the message's before both."""
    checked = connector.check_message("send", {"text": "x"} | message, {"channel": "C0NEWS"})

    assert (checked["channel"], checked.get("thread_ts")) == (channel, thread)
    assert connector.recipient("send", checked) == channel


async def test_a_message_without_a_channel_asks_nobody(slack: StandIn, egress: Egress) -> None:
    """With a token there is none to fall back on."""
    answer = await by_token(slack, egress, channel=None)

    assert isinstance(answer, Refused)
    assert "channel is required" in answer.error
    assert slack.asked == []


async def test_an_error_says_what_is_missing(slack: StandIn, egress: Egress) -> None:
    """The scope, or the place in the blocks; in one line of at most 300 characters."""
    slack.then(
        failure("missing_scope", needed="chat:write.customize", provided="chat:write"),
        failure("invalid_blocks", response_metadata={"messages": ["[ERROR] " + "x" * 900]}),
        failure("invalid_blocks", response_metadata={"messages": "?"}, errors=5),
    )

    scope, blocks, odd = [await by_token(slack, egress) for _ in range(3)]

    assert "needed: chat:write.customize, granted: chat:write" in scope.error
    assert "[ERROR] xxx" in blocks.error
    assert len(blocks.error) == 300
    assert blocks.error.endswith(ERRORS["invalid_blocks"].remedy)
    assert odd.error.startswith("Slack: invalid_blocks; ")


@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize("as_json", [False, True])
async def test_an_answer_that_says_the_credentials_back_is_cleaned(
    slack: StandIn, egress: Egress, status: int, as_json: bool
) -> None:
    """A proxy may echo a request; what it echoes is no error's to show."""
    echo = f"you said {TOKEN} to {HOOK['webhook_url']} at {PATH}"
    body = json.dumps({"ok": False, "error": echo}) if as_json else echo
    slack.then(*[Reply(status=status, body=body.encode())] * 2)

    with_token, by_webhook = await by_token(slack, egress), await by_hook(slack, egress)

    assert TOKEN not in with_token.error
    assert not [secret for secret in SECRETS[1:] if secret in by_webhook.error]
    assert "[credential]" in with_token.error
    assert "[credential]" in by_webhook.error


@pytest.mark.slow
@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    status=st.sampled_from([200, 201, 400, 401, 429, 500]),
    hook=st.booleans(),
    body=st.one_of(
        st.binary(max_size=40).filter(lambda body: body.strip() != b"ok"),
        st.recursive(
            st.none() | st.just(False) | st.integers() | st.text(max_size=9),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["ok", "error", "ts", "channel", "response_metadata"]),
                    inner,
                    max_size=5,
                )
            ),
            max_leaves=8,
        ).map(lambda value: json.dumps(value).encode()),
    ),
)
def test_whatever_is_answered_there_is_a_verdict(status: int, hook: bool, body: bytes) -> None:
    """No exception of the SDK comes out, and nothing is sent that Slack did not say ok to."""

    async def play() -> Answer:
        egress = Egress([ip_network("127.0.0.0/8")], tls=TLS)
        try:
            with StandIn() as slack:
                slack.then(Reply(status=status, body=body))
                return await (by_hook if hook else by_token)(slack, egress)
        finally:
            await egress.close()

    answer = asyncio.run(play())

    assert isinstance(answer, Retry | Refused)
    assert len(answer.error) <= 300


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({}, "text or blocks"),
        ({"text": ""}, "text or blocks"),
        ({"text": " \n"}, "text or blocks"),
        ({"text": 5}, "text"),
        ({"text": "x" * 40_001}, "text"),
        ({"text": "x", "token": "xoxb-stolen"}, "token"),
        ({"text": "x", "thread_ts": "yesterday"}, "thread_ts"),
        ({"text": "x", "thread_ts": "1.5\r\nx"}, "thread_ts"),
        ({"text": "x", "unfurl_links": "yes"}, "unfurl_links"),
        ({"text": "x", "metadata": []}, "metadata"),
        ({"blocks": {}}, "blocks"),
        ({"blocks": ["x"]}, "blocks"),
        ({"blocks": [{"type": "divider"}] * 51}, "blocks has 51"),
        ({"blocks": [{}]}, "blocks/0 must have a type"),
        ({"blocks": [{"type": "header", "text": {"text": "x" * 151}}]}, "blocks/0/text"),
        ({"blocks": [{"type": "markdown", "text": "x" * 12_001}]}, "blocks/0/text"),
        ({"blocks": [{"type": "section", "fields": [{}] * 11}]}, "blocks/0/fields"),
        ({"blocks": [{"type": "actions", "elements": [{}] * 26}]}, "blocks/0/elements"),
        ({"blocks": [{"type": "divider", "block_id": "x" * 256}]}, "blocks/0/block_id"),
        ({"attachments": [{}] * 101}, "attachments"),
        ({"text": "x", "username": []}, "username"),
        ({"text": "x", "more": "x" * 300_000}, "262144"),
    ],
)
def test_a_wrong_payload_is_refused_at_once(payload: dict[str, Any], field: str) -> None:
    """The guest learns it while it runs, with the name of the field."""
    with pytest.raises(HostCallRefused, match=field):
        connector.check_message("send", payload, {})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
BLOCK = st.dictionaries(
    st.sampled_from(["type", "text", "fields", "elements", "block_id"]), JSON, max_size=4
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    message=st.dictionaries(
        st.sampled_from([*_STRINGS, *_FLAGS, *_LISTS, "metadata", "more"]), JSON, max_size=6
    ),
    blocks=st.none() | st.lists(BLOCK, max_size=2),
)
def test_whatever_a_guest_gives_is_checked_or_refused(
    message: dict[str, Any], blocks: list[Any] | None
) -> None:
    """And what has passed has a recipient, and passes again."""
    try:
        checked = connector.check_message("send", message | {"blocks": blocks}, {"channel": "C1"})
    except HostCallRefused:
        return
    assert connector.recipient("send", checked)
    assert connector.check_message("send", checked, {}) == checked


@pytest.mark.parametrize(
    ("credentials", "given", "pointer"),
    [
        ({}, {}, "/credentials/webhook_url"),
        ({"webhook_url": "hooks.slack.com/x"}, {}, "/credentials/webhook_url"),
        ({"webhook_url": "ftp://h/x"}, {}, "/credentials/webhook_url"),
        ({"webhook_url": "https://h/x", "token": TOKEN}, {}, "/credentials/webhook_url"),
        ({"token": "secret"}, {}, "/credentials/token"),
        ({"token": TOKEN + "\r\nX-Evil: 1"}, {}, "/credentials/token"),
        ({"token": TOKEN, "more": 1}, {}, "/credentials"),
        ({"token": TOKEN}, {"channel": 5}, "/settings/channel"),
        ({"token": TOKEN}, {"base_url": "x"}, "/settings/base_url"),
    ],
)
def test_a_wrong_connection_is_refused(
    credentials: dict[str, Any], given: dict[str, Any], pointer: str
) -> None:
    """With a pointer, and without a piece of a secret."""
    with pytest.raises(Invalid) as refused:
        check_connection(connector, credentials, given)

    assert refused.value.problems[0].pointer.startswith(pointer)
    assert TOKEN not in str(refused.value)


@pytest.mark.parametrize("token", [TOKEN, "xoxe.xoxb-1-MS0yLTExMTExMTExMTEx"])
def test_a_token_may_be_one_that_rotates(token: str) -> None:
    """Slack's tokens with an end have another beginning."""
    check_connection(connector, {"token": token}, {})


async def test_json_may_be_given_as_a_text(slack: StandIn, egress: Egress) -> None:
    """As the form of Slack's API has it."""
    blocks, metadata = [{"type": "divider"}], {"event_type": "a", "event_payload": {}}
    texts = {"blocks": json.dumps(blocks), "attachments": "[]", "metadata": json.dumps(metadata)}

    assert isinstance(await by_token(slack, egress, texts), Sent)

    (taken,) = slack.accepted
    assert (taken["blocks"], taken["attachments"], taken["metadata"]) == (blocks, [], metadata)


@pytest.mark.parametrize("name", ["blocks", "attachments", "metadata"])
@pytest.mark.parametrize("text", ["[{", "", '"x"', "5", "[" * 90_000])
def test_a_text_that_is_no_json_of_the_kind_is_refused(name: str, text: str) -> None:
    """In the run, by the field's name."""
    with pytest.raises(HostCallRefused, match=name):
        connector.check_message("send", {"channel": "C1", "text": "x", name: text}, {})


async def test_a_long_message_that_is_said_back_is_posted(slack: StandIn, egress: Egress) -> None:
    """Each letter twice, in six bytes: 40,000 of them are half a MiB."""
    assert isinstance(await by_token(slack, egress, {"text": "я" * 40_000}), Sent)


async def test_a_base_url_may_have_a_path(egress: Egress) -> None:
    """As an operator's proxy has it; the provider's own path follows."""

    class Behind(StandIn):
        prefix = "/out/slack"

    with Behind() as slack:
        given = {"base_url": slack.url + "/out/slack/", "channel": "C0ALARMS"}
        with_token = await send(egress, {"token": TOKEN}, given)
        by_webhook = await send(egress, HOOK, given)

    assert with_token == Sent(200, "C0ALARMS/1503435956.000001")
    assert by_webhook == Sent(200)


async def test_the_sdk_cannot_go_around_the_guard(
    slack: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forbidden address is refused, and no proxy comes from the environment."""
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, slack.url)
    asked: list[str] = []

    async def resolve(host: str, _port: int) -> list[str]:
        asked.append(host)
        return ["10.0.0.5"]

    egress = Egress((), resolve=resolve, tls=TLS)
    answers = [
        await send(egress, credentials, {"base_url": base_url, "channel": "C1"})
        for credentials in (HOOK, {"token": TOKEN})
        for base_url in (None, "http://metadata.internal")
    ]
    await egress.close()

    for answer in answers:
        assert isinstance(answer, Refused)
        assert "CLOUDCODE_EGRESS_ALLOW=10.0.0.5/32" in answer.error
        assert not [secret for secret in SECRETS if secret in answer.error]
    assert asked == ["hooks.slack.com", "metadata.internal", "slack.com", "metadata.internal"]
    assert slack.asked == []


async def test_the_sdk_logs_no_secret(
    slack: StandIn, egress: Egress, caplog: pytest.LogCaptureFixture
) -> None:
    """It would log the URL of a webhook, and every body, at the level of debugging."""
    with caplog.at_level(logging.DEBUG):
        await by_hook(slack, egress, {"text": "a message of somebody's"})
        await by_token(slack, egress, {"text": "a message of somebody's"})

    assert len(slack.accepted) == 2
    assert not [secret for secret in SECRETS if secret in caplog.text]
    assert "somebody" not in caplog.text


async def test_the_credentials_can_be_tried(slack: StandIn, egress: Egress) -> None:
    """And nothing is posted."""
    given = {"base_url": slack.url}
    gone = {"webhook_url": "https://hooks.slack.com/services/T0/B0/gone"}

    token = await connector.test(egress, {"token": TOKEN}, given, now_ms=NOW)
    wrong = await connector.test(egress, {"token": "xoxb-wrong-token"}, given, now_ms=NOW)
    hook = await connector.test(egress, HOOK, given, now_ms=NOW)
    no_hook = await connector.test(egress, gone, given, now_ms=NOW)
    slack.then(Reply(status=200, body=b"ok"))
    taken = await connector.test(egress, HOOK, given, now_ms=NOW)

    assert token == Sent(200, "alarms in Boilers")
    assert isinstance(wrong, Refused)
    assert wrong.disables
    assert isinstance(hook, Sent)
    assert isinstance(no_hook, Refused)
    assert no_hook.disables
    assert isinstance(taken, Refused)
    assert slack.accepted == []


async def test_a_closed_port_is_tried_again(egress: Egress) -> None:
    """There was no answer, so nothing is known."""
    answer = await send(egress, {"webhook_url": "http://127.0.0.1:8/services/x"}, {})

    assert isinstance(answer, Retry)


async def test_the_demos_stand_in_shows_what_it_received(hooks: SlackStandIn) -> None:
    """As the demo reads it; and it refuses what Slack would refuse."""
    async with httpx.AsyncClient(trust_env=False) as client:
        ok = await client.post(hooks.webhook_url, json={"text": "hello"})
        no_text = await client.post(hooks.webhook_url, json={"text": ""})
        no_json = await client.post(hooks.webhook_url, content=b"text=hello")
        elsewhere = await client.post(f"{hooks.url}/other", json={"text": "x"})
        received = (await client.get(f"{hooks.url}/received")).json()

    assert (ok.status_code, ok.text) == (200, "ok")
    assert (no_text.status_code, no_text.text) == (400, "no_text")
    assert (no_json.status_code, no_json.text) == (400, "invalid_payload")
    assert (elsewhere.status_code, elsewhere.text) == (404, "no_service")
    assert received == {"count": 1, "messages": [{"text": "hello"}]}
