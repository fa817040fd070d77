"""Telegram's connector, against a server that keeps the rules of the Bot API."""

import base64
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from engine.connectors import CONNECTORS
from engine.connectors.contract import (
    Answer,
    Outgoing,
    Refused,
    Retry,
    Sent,
    check_connection,
)
from engine.egress import Egress
from engine.errors import HostCallRefused, Invalid
from tests.contracts.test_connector_pages import NOW
from tests.standins.provider import Reply
from tests.standins.providers.telegram import CHAT, GROUP, OLD_GROUP, TOKEN, StandIn, refusal

CONNECTOR = CONNECTORS["telegram"]
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(64)).decode()
SECRET = TOKEN.partition(":")[2]


@pytest.fixture
def telegram() -> Iterator[StandIn]:
    with StandIn() as stand_in:
        yield stand_in


async def send(
    telegram: StandIn,
    egress: Egress,
    message: dict[str, Any],
    action: str = "send",
    *,
    token: str = TOKEN,
    **settings: Any,
) -> Answer:
    known = {"base_url": telegram.url, **settings}
    return await CONNECTOR.send(
        egress,
        Outgoing(
            action=action,
            message=CONNECTOR.check_message(action, message, known),
            credentials={"token": token},
            settings=known,
            delivery_id="dlv_1",
            attempt=1,
            now_ms=NOW,
            timeout_ms=2_000,
        ),
    )


async def test_every_field_arrives_as_it_was_given(telegram: StandIn, egress: Egress) -> None:
    """Nested fields, and those that the library does not know yet."""
    message = {
        "chat_id": str(CHAT),
        "text": "<b>21 °C</b> 🌡",
        "parse_mode": "HTML",
        "link_preview_options": {"is_disabled": True},
        "reply_markup": {"inline_keyboard": [[{"text": "Off", "callback_data": "off"}]]},
        "disable_notification": True,
        "message_thread_id": 7,
        "a_field_of_next_year": {"deep": [1, None]},
        "protect_content": None,
    }

    answer = await send(telegram, egress, message)

    assert answer == Sent(200, "1001")
    assert telegram.accepted == [
        {
            "method": "sendMessage",
            "chat_id": CHAT,
            "text": "<b>21 °C</b> 🌡",
            "parse_mode": "HTML",
            "link_preview_options": {"is_disabled": True},
            "reply_markup": {"inline_keyboard": [[{"text": "Off", "callback_data": "off"}]]},
            "disable_notification": "true",
            "message_thread_id": "7",
            "a_field_of_next_year": '{"deep": [1, null]}',
        }
    ]
    assert len(telegram.asked) == 1


async def test_a_photo_goes_by_url_by_id_and_by_content(telegram: StandIn, egress: Egress) -> None:
    """The last one as a multipart form."""
    url = "https://example.com/gate.jpg?a=b&c=d"
    file_id = "AgACAgIAAxkBAAIBY2_" + "x" * 40

    by_url = await send(telegram, egress, {"chat_id": CHAT, "photo": url}, "sendPhoto")
    by_id = await send(telegram, egress, {"chat_id": CHAT, "photo": file_id}, "sendPhoto")
    message = {"chat_id": "@pumps", "photo_base64": PNG, "caption": "Zażółć", "spoiler": True}
    by_content = await send(telegram, egress, message, "sendPhoto")

    assert [answer.message_id for answer in (by_url, by_id, by_content)] == ["1001", "1002", "1003"]
    assert [taken["photo"] for taken in telegram.accepted[:2]] == [url, file_id]
    uploaded = telegram.accepted[2]
    assert uploaded["photo"] == base64.b64decode(PNG)
    assert (uploaded["chat_id"], uploaded["caption"]) == (GROUP, "Zażółć")


@pytest.mark.parametrize(
    "photo", ["/etc/passwd", "file:///etc/passwd", "attach://x", "pyproject.toml", "LICENSE", ""]
)
def test_a_photo_is_never_a_file_of_ours(photo: str) -> None:
    """The library would send a file that has this name."""
    with pytest.raises(HostCallRefused, match="URL or a file_id"):
        CONNECTOR.check_message("sendPhoto", {"chat_id": 1, "photo": photo}, {})


async def test_a_file_that_is_named_like_a_file_id_stays_here(
    telegram: StandIn, egress: Egress, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one lies about: the name is sent, not the content."""
    file_id = "secrets-of-the-operator_1"
    (tmp_path / file_id).write_bytes(b"\x89PNG master key")
    monkeypatch.chdir(tmp_path)

    await send(telegram, egress, {"chat_id": CHAT, "photo": file_id}, "sendPhoto")

    assert telegram.accepted[0]["photo"] == file_id


async def test_a_place_arrives(telegram: StandIn, egress: Egress) -> None:
    """With the fields beside it."""
    place = {"chat_id": CHAT, "latitude": 47.5, "longitude": -19, "live_period": 60}

    answer = await send(telegram, egress, place, "sendLocation")

    assert answer == Sent(200, "1001")
    taken = telegram.accepted[0]
    assert (taken["latitude"], taken["longitude"], taken["live_period"]) == ("47.5", "-19", "60")


async def test_a_text_can_be_sent_by_telegrams_own_name(telegram: StandIn, egress: Egress) -> None:
    """`sendMessage` is `send`."""
    settings = {"chat_id": CHAT, "parse_mode": "HTML"}

    await send(telegram, egress, {"text": "<b>1</b>"}, "send", **settings)
    await send(telegram, egress, {"text": "<b>1</b>"}, "sendMessage", **settings)

    assert telegram.accepted[0] == telegram.accepted[1]
    with pytest.raises(HostCallRefused):
        CONNECTOR.check_message("sendMessage", {"text": ""}, settings)


async def test_settings_fill_in_what_a_message_leaves_out(
    telegram: StandIn, egress: Egress
) -> None:
    """The chat and the parse mode; neither where the message has its own, or entities."""
    settings = {"chat_id": CHAT, "parse_mode": "HTML"}

    await send(telegram, egress, {"text": "<b>1</b>"}, **settings)
    entities = [{"type": "bold", "offset": 0, "length": 1}]
    await send(telegram, egress, {"text": "2", "entities": entities}, **settings)
    await send(telegram, egress, {"text": "3", "chat_id": GROUP, "parse_mode": ""}, **settings)
    await send(telegram, egress, {"latitude": 1, "longitude": 2}, "sendLocation", **settings)

    taken = [(one["chat_id"], one.get("parse_mode")) for one in telegram.accepted]
    assert taken == [(CHAT, "HTML"), (CHAT, None), (GROUP, ""), (CHAT, None)]


REFUSED = "failed"
RETRY = "retrying"


@pytest.mark.parametrize(
    ("reply", "becomes", "after_ms", "words"),
    [
        (refusal(429, "Too Many Requests: retry after 35", retry_after=35), RETRY, 35_000, "429"),
        (refusal(429, "Too Many Requests"), RETRY, None, "429"),
        (refusal(409, "Conflict: terminated by other"), RETRY, None, "Conflict"),
        (refusal(400, "Bad Request: failed to get HTTP URL content"), RETRY, None, "URL content"),
        (refusal(500, "Internal Server Error"), RETRY, None, "500"),
        (refusal(504, "Gateway Timeout"), RETRY, None, "504"),
        (refusal(400, "Bad Request: chat not found"), REFUSED, None, "chat not found"),
        (refusal(403, "Forbidden: bot was blocked by the user"), REFUSED, None, "blocked"),
        (refusal(413, "Request Entity Too Large"), REFUSED, None, "Too Large"),
        (refusal(401, "Unauthorized"), "disabled", None, "PUT the connection with a valid token"),
        (refusal(404, "Not Found"), "disabled", None, "PUT the connection with a valid token"),
        (Reply(status=404, body=b"<html>no bot</html>"), "disabled", None, "no bot"),
        (Reply(status=200, body=b'{"ok":true,"result":true}'), REFUSED, None, "expected"),
        (Reply(status=200, body=b"[1]"), REFUSED, None, "expected"),
        (Reply(status=200, body=b"\xff\xfe"), REFUSED, None, "expected"),
        (Reply(status=204), REFUSED, None, "expected"),
        (Reply(status=200, body=b'{"ok":true,"result":{"message_id":"x"}}'), REFUSED, None, "exp"),
        (Reply(status=502, body=b'{"parameters":[],"description":5}'), RETRY, None, "502"),
    ],
    ids=lambda value: None if isinstance(value, Reply) else str(value),
)
async def test_each_error_and_what_becomes_of_it(
    telegram: StandIn,
    egress: Egress,
    reply: Reply,
    becomes: str,
    after_ms: int | None,
    words: str,
) -> None:
    """One request for each; the library tries nothing again."""
    telegram.then(reply)

    answer = await send(telegram, egress, {"chat_id": CHAT, "text": "x"})

    assert isinstance(answer, Retry if becomes == RETRY else Refused), answer
    assert words in answer.error
    if isinstance(answer, Retry):
        assert answer.after_ms == after_ms
    else:
        assert answer.disables == (becomes == "disabled")
    assert len(telegram.asked) == 1


async def test_a_group_that_moved_names_its_new_id(telegram: StandIn, egress: Egress) -> None:
    """It stands in `parameters`, and nowhere in the words."""
    answer = await send(telegram, egress, {"chat_id": OLD_GROUP, "text": "x"})

    assert isinstance(answer, Refused)
    assert str(GROUP) in answer.error


async def test_an_answer_that_the_library_could_not_read_is_still_an_answer(
    telegram: StandIn, egress: Egress
) -> None:
    """A message of next year's kind was sent all the same."""
    telegram.then(Reply(body=b'{"ok":true,"result":{"message_id":77,"chat":"of next year"}}'))

    answer = await send(telegram, egress, {"chat_id": CHAT, "text": "x"})

    assert answer == Sent(200, "77")


async def test_the_token_is_in_no_error_and_no_log(
    telegram: StandIn, egress: Egress, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where a server repeats the URL, and at the lowest level of every logger."""
    caplog.set_level(logging.DEBUG)
    path = f"/bot{TOKEN}/sendMessage".replace(":", "%3A")
    telegram.then(
        Reply(status=404, body=f"no such page: {telegram.url}/bot{TOKEN}/sendMessage".encode()),
        refusal(400, f"Bad Request: {path}"),
        Reply(status=302, headers={"Location": f"{telegram.url}/elsewhere"}),
        Reply(fault="drop"),
    )

    answers = [await send(telegram, egress, {"chat_id": CHAT, "text": "x"}) for _ in range(4)]
    nowhere = await send(telegram, egress, {"chat_id": 1, "text": "x"}, base_url="http://10.0.0.1")

    said = repr([*answers, nowhere]) + caplog.text
    assert SECRET not in said
    assert isinstance(nowhere, Refused)
    assert "CLOUDCODE_EGRESS_ALLOW" in nowhere.error


async def test_a_test_asks_who_the_bot_is(telegram: StandIn, egress: Egress) -> None:
    """And nobody gets a message; a wrong token is told as when sending."""
    settings = {"base_url": telegram.url}
    wrong = {"token": TOKEN.replace("ABC", "XYZ")}

    known = await CONNECTOR.test(egress, {"token": TOKEN}, settings, now_ms=NOW)
    unknown = await CONNECTOR.test(egress, wrong, settings, now_ms=NOW)

    assert known == Sent(200, "@pump_bot")
    assert isinstance(unknown, Refused)
    assert unknown.disables
    assert telegram.accepted == []


async def test_base_url_may_have_a_prefix(telegram: StandIn, egress: Egress) -> None:
    """A proxy can serve several things."""
    prefix = f"{telegram.url}/telegram/"
    await send(telegram, egress, {"chat_id": CHAT, "text": "x"}, base_url=prefix)

    assert telegram.asked[0].path == f"/telegram/bot{TOKEN}/sendMessage"


@pytest.mark.parametrize(
    ("action", "message", "words"),
    [
        ("send", {"text": "x"}, "chat_id is required"),
        ("send", {"chat_id": None, "text": "x"}, "chat_id is required"),
        ("send", {"chat_id": True, "text": "x"}, "chat_id must be"),
        ("send", {"chat_id": 1.5, "text": "x"}, "chat_id must be"),
        ("send", {"chat_id": "two words", "text": "x"}, "chat_id must be"),
        ("send", {"chat_id": 2**70, "text": "x"}, "chat_id must be"),
        ("send", {"chat_id": 1}, "text is required"),
        ("send", {"chat_id": 1, "text": ["x"]}, "text must be a string"),
        ("send", {"chat_id": 1, "text": ""}, "text is empty"),
        ("send", {"chat_id": 1, "text": "x" * 4_097}, "Telegram takes 4096"),
        ("send", {"chat_id": 1, "text": "x" * 300_000, "parse_mode": "HTML"}, "262144"),
        ("sendPhoto", {"chat_id": 1}, "photo or photo_base64"),
        ("sendPhoto", {"chat_id": 1, "photo": "https://x.y/z", "photo_base64": PNG}, "not both"),
        ("sendPhoto", {"chat_id": 1, "photo": 7}, "photo must be a string"),
        ("sendPhoto", {"chat_id": 1, "photo_base64": "%%%"}, "not base64"),
        ("sendPhoto", {"chat_id": 1, "photo_base64": PNG, "caption": "x" * 1_025}, "takes 1024"),
        ("send", {"chat_id": 1, "text": "t", "caption": 5}, "caption must be a string"),
        ("sendPhoto", {"chat_id": 1, "photo": "A" * 20, "text": 5}, "text must be a string"),
        ("sendLocation", {"chat_id": 1, "latitude": 1}, "longitude must be"),
        ("sendLocation", {"chat_id": 1, "latitude": 91, "longitude": 0}, "latitude must be"),
        ("sendLocation", {"chat_id": 1, "latitude": True, "longitude": 0}, "latitude must be"),
        ("sendLocation", {"chat_id": 1, "latitude": "1", "longitude": 0}, "latitude must be"),
    ],
)
def test_what_telegram_surely_refuses_is_refused_in_the_run(
    action: str, message: dict[str, Any], words: str
) -> None:
    """The field is named, and nothing is stored."""
    with pytest.raises(HostCallRefused, match="telegram: ") as refused:
        CONNECTOR.check_message(action, message, {})

    assert words in str(refused.value)


@pytest.mark.parametrize(
    "name", ['a"\r\nContent-Disposition: form-data; name="x', "a&text=other", "a\x00b", "é=😀"]
)
@pytest.mark.parametrize("action", ["send", "sendPhoto"])
async def test_a_field_cannot_break_out_of_its_form(
    telegram: StandIn, egress: Egress, name: str, action: str
) -> None:
    """Whatever its name is, the request has the fields that were given, and no others."""
    content = {"text": "x"} if action == "send" else {"photo_base64": PNG}

    answer = await send(telegram, egress, {"chat_id": CHAT, name: "v", **content}, action)

    assert isinstance(answer, Sent)
    assert len(telegram.accepted[0]) == 4
    assert telegram.accepted[0].get("text", "x") == "x"


@pytest.mark.parametrize(
    "token",
    ["", "998877", "998877:", "998877:../../getMe?x=0123456789", f"{TOKEN}/x", f"{TOKEN}\n"],
)
def test_a_token_that_is_none_is_refused_and_not_repeated(token: str) -> None:
    """It becomes part of a URL."""
    with pytest.raises(Invalid) as invalid:
        check_connection(CONNECTOR, {"token": token}, {})

    assert invalid.value.problems[0].pointer == "/credentials/token"
    assert not token or token not in str(invalid.value)


def test_whom_it_is_for() -> None:
    """The same chat by number or by text is one line of messages."""
    by_number = CONNECTOR.recipient("send", {"chat_id": 5, "text": "x"})
    by_text = CONNECTOR.recipient("sendPhoto", {"chat_id": "5", "photo": "x"})

    assert by_number == by_text == "5"


def test_the_library_is_loaded_at_the_first_message_only() -> None:
    """An engine that sends nothing has neither its memory nor its half second."""
    program = "import sys, engine.connectors; print('telegram' in sys.modules)"

    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert found.stdout == "False\n"
