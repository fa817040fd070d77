"""The Apprise connector beyond its page's table: its processes, its checks, what it never shows."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.connectors import CONNECTORS, apprise
from engine.connectors.apprise_processes import PROCESSES_MAX, AppriseProcesses
from engine.connectors.apprise_services import SCHEMAS
from engine.connectors.contract import Answer, Outgoing, Refused, Retry, Sent, check_connection
from engine.egress import Egress
from engine.errors import HostCallRefused, Invalid
from tests.standins.provider import Reply
from tests.standins.providers.apprise import PASSWORD, TOPIC, USER, StandIn

pytestmark = pytest.mark.slow  # a process is started in most of them

APPRISE = CONNECTORS["apprise"]
NOW = 1_700_000_000_500
COMPUTED = """
import json, sys
from apprise.plugins import N_MGR
N_MGR.load_modules()
spoken = set()
for schema, plugin in N_MGR._schema_map.items():
    for part in plugin.__mro__:
        home = ".".join(part.__module__.split(".")[:3])
        if home.startswith("apprise.plugins.") and home != "apprise.plugins.base":
            modules = [m for n, m in list(sys.modules.items()) if (n + ".").startswith(home + ".")]
            if any(hasattr(module, "requests") for module in modules):
                spoken.add(schema)
print(json.dumps(sorted(spoken)))
"""


@pytest.fixture
def ntfy() -> Iterator[StandIn]:
    with StandIn() as stand_in:
        yield stand_in


async def send(egress: Egress, url: str, timeout_ms: int = 5_000, **message: Any) -> Answer:
    message = {"body": "The door is open"} | message
    return await APPRISE.send(
        egress,
        Outgoing(
            action="send",
            message=APPRISE.check_message("send", message, {}),
            credentials={"url": url},
            settings={},
            delivery_id="dlv_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f",
            attempt=1,
            now_ms=NOW,
            timeout_ms=timeout_ms,
        ),
    )


def pids(egress: Egress) -> list[int]:
    return egress.companion(AppriseProcesses).pids


async def test_a_message_arrives_as_it_was_given(ntfy: StandIn, egress: Egress) -> None:
    """Title, text and nothing else; by the credentials of the URL."""
    answer = await send(egress, ntfy.address(), title="Grüße ☃", body="line 1\nline 2 <b>&amp;")

    assert answer == Sent(200)
    (message,) = ntfy.accepted
    assert message == {"topic": TOPIC, "title": "Grüße ☃", "message": "line 1\nline 2 <b>&amp;"}


async def test_markdown_becomes_what_the_service_takes(egress: Egress) -> None:
    """Apprise converts; the custom JSON service takes text."""
    with StandIn() as taker:
        taker.then(Reply(status=200))

        answer = await send(
            egress, taker.url.replace("http", "json"), body="# Door\n*open*", format="markdown"
        )

    assert answer == Sent(200)
    (asked,) = taker.asked
    assert "Door" in json.loads(asked.body)["message"]
    assert json.loads(asked.body)["type"] == "info"


@pytest.mark.parametrize("status", [200, 302, 401, 429, 500, 503])
async def test_one_attempt_is_one_request(ntfy: StandIn, egress: Egress, status: int) -> None:
    """Whatever is answered: attempts are the ledger's to count."""
    ntfy.then(Reply(status=status, headers={"Location": ntfy.url, "Retry-After": "0"}))

    await send(egress, ntfy.address())

    assert len(ntfy.asked) == 1


async def test_a_service_that_tries_again_itself_does_not(egress: Egress) -> None:
    """Its second request would come after a 429 or a 5xx: it never leaves the process."""
    with StandIn() as matrix:
        matrix.then(*[Reply(status=429, body=b"{}", headers={"Retry-After": "9"})] * 5)
        url = matrix.url.replace("http://", "matrix://user:a-password@") + "/%23room"

        answer = await send(egress, url)

    assert isinstance(answer, Retry)
    assert (answer.status, answer.after_ms) == (429, 9_000)
    assert len(matrix.asked) == 1


@pytest.mark.parametrize("status", [200, 401, 429, 500])
async def test_no_error_shows_a_part_of_the_url(ntfy: StandIn, egress: Egress, status: int) -> None:
    """Also when the service says it back to us."""
    said = f"{USER} {PASSWORD} {TOPIC} {ntfy.address()}"
    ntfy.then(
        Reply(status=status if status != 200 else 400, body=json.dumps({"error": said}).encode())
    )

    answer = await send(egress, ntfy.address())

    assert isinstance(answer, Refused | Retry)
    for secret in (USER, PASSWORD, TOPIC):
        assert secret not in answer.error
        assert secret not in repr(answer)


async def test_an_attempt_shows_no_credential() -> None:
    """In a log or a traceback."""
    outgoing = Outgoing(
        action="send",
        message={},
        credentials={"url": "ntfys://user:hidden@host/topic"},
        settings={},
        delivery_id="dlv_1",
        attempt=1,
        now_ms=NOW,
    )

    assert "hidden" not in repr(outgoing)


async def test_a_process_is_used_again_and_ends_with_its_egress(ntfy: StandIn) -> None:
    """The second message does not wait for Python to start; nothing stays behind."""
    egress = Egress([ip_network("127.0.0.0/8")])

    assert pids(egress) == []
    await send(egress, ntfy.address())
    (first,) = pids(egress)
    await send(egress, ntfy.address())
    assert pids(egress) == [first]
    await egress.close()

    assert pids(egress) == []
    assert not psutil.pid_exists(first)


async def test_an_idle_process_ends(
    ntfy: StandIn, egress: Egress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """60 MB are given back; the next message starts another."""
    monkeypatch.setattr("engine.connectors.apprise_processes.IDLE_S", 0.0)

    await send(egress, ntfy.address())
    async with asyncio.timeout(10):
        while pids(egress):
            await asyncio.sleep(0.01)

    assert await send(egress, ntfy.address()) == Sent(200)


async def test_a_process_that_hangs_is_replaced(ntfy: StandIn, egress: Egress) -> None:
    """It is killed when the attempt's time is over; the next message does not notice."""
    await send(egress, ntfy.address())
    (first,) = pids(egress)
    os.kill(first, signal.SIGSTOP)

    answer = await send(egress, ntfy.address(), timeout_ms=300)
    after = await send(egress, ntfy.address())

    assert answer == Retry(None, None, "no answer within 300 ms")
    assert after == Sent(200)
    assert not psutil.pid_exists(first)


async def test_a_process_that_dies_is_replaced(ntfy: StandIn, egress: Egress) -> None:
    """Killed while it waits for work, or by the kernel in the middle of it."""
    await send(egress, ntfy.address())
    (first,) = pids(egress)
    os.kill(first, signal.SIGKILL)

    answers = [await send(egress, ntfy.address()) for _ in range(2)]

    assert answers[1] == Sent(200)
    assert not psutil.pid_exists(first)


async def test_fifty_at_once_share_a_few_processes(ntfy: StandIn, egress: Egress) -> None:
    """None is lost, none is doubled."""
    answers = await asyncio.gather(
        *(send(egress, ntfy.address(), timeout_ms=20_000, body=f"n {n}") for n in range(50))
    )

    assert answers == [Sent(200)] * 50
    assert sorted(one["message"] for one in ntfy.accepted) == sorted(f"n {n}" for n in range(50))
    assert 0 < len(pids(egress)) <= PROCESSES_MAX


async def test_nobody_waits_for_a_process_for_ever(ntfy: StandIn, egress: Egress) -> None:
    """Slow servers hold all of them: the rest is tried again later, and says so."""
    ntfy.then(*[Reply(fault="hang")] * PROCESSES_MAX)
    slow = [
        asyncio.create_task(send(egress, ntfy.address(), timeout_ms=4_000))
        for _ in range(PROCESSES_MAX)
    ]
    async with asyncio.timeout(20):
        while len(ntfy.asked) < PROCESSES_MAX:
            await asyncio.sleep(0.01)

    answer = await send(egress, ntfy.address(), timeout_ms=100)

    for task in slow:
        task.cancel()
    await asyncio.wait(slow)
    assert answer == Retry(None, None, "all processes for Apprise are busy; nothing was sent")
    assert len(ntfy.asked) == PROCESSES_MAX
    assert pids(egress) == []  # who was cancelled took its process with it


async def test_the_test_of_a_connection_sends_nothing(ntfy: StandIn, egress: Egress) -> None:
    """It says which service the URL names."""
    answer = await APPRISE.test(egress, {"url": ntfy.address()}, {}, now_ms=NOW)
    wrong = await APPRISE.test(egress, {"url": "discord://secret-one"}, {}, now_ms=NOW)

    assert isinstance(answer, Sent)
    assert "ntfy" in (answer.message_id or "")
    assert isinstance(wrong, Refused)
    assert "secret-one" not in wrong.error
    assert ntfy.asked == []


@pytest.mark.parametrize(
    ("credentials", "settings", "pointer", "why"),
    [
        ({}, {}, "/credentials/url", "missing"),
        ({"urls": ["ntfy://a/b"]}, {}, "/credentials", "known: url"),
        ({"url": "no url"}, {}, "/credentials/url", "space"),
        ({"url": "ntfy"}, {}, "/credentials/url", "ntfys://"),
        ({"url": "ntfy://h/t\n"}, {}, "/credentials/url", "control"),
        ({"url": "ntfy://" + "x" * 3_000}, {}, "/credentials/url", "2048"),
        ({"url": "mailto://user:pw@host"}, {}, "/credentials/url", "kind mail"),
        ({"url": "https://discord.com/api/x"}, {}, "/credentials/url", "discord://"),
        ({"url": "ntfy://h/t"}, {"base_url": "http://h"}, "/settings/base_url", "itself"),
        ({"url": "ntfy://h/t"}, {"tag": "x"}, "/settings", "known"),
    ],
)
def test_what_a_connection_may_not_be(
    credentials: dict[str, Any], settings: dict[str, Any], pointer: str, why: str
) -> None:
    """Said when it is put, and with the remedy."""
    with pytest.raises(Invalid) as refused:
        check_connection(APPRISE, credentials, settings)

    assert refused.value.problems[0].pointer.startswith(pointer)
    assert why in str(refused.value)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({}, "body"),
        ({"body": " "}, "body"),
        ({"body": ["x"]}, "body"),
        ({"body": "x", "title": 5}, "title"),
        ({"body": "x", "title": "x" * 1_001}, "title"),
        ({"body": "x", "type": "fatal"}, "type"),
        ({"body": "x", "format": ["html"]}, "format"),
        ({"body": "x", "tag": "all"}, "tag"),
        ({"body": "x" * 300_000}, "262144"),
    ],
)
def test_a_wrong_message_is_refused_in_the_run(message: dict[str, Any], field: str) -> None:
    """With the name of the field."""
    with pytest.raises(HostCallRefused, match=field):
        APPRISE.check_message("send", message, {})


def test_the_list_of_services_is_that_of_the_installed_apprise() -> None:
    """All that speak HTTP. A new release's are looked at before they are let in."""
    found = json.loads(subprocess.check_output([sys.executable, "-I", "-c", COMPUTED]))

    # By websockets; by a key file, which cannot be read.
    assert set(found) - {"nostr", "vapid"} == SCHEMAS


def test_the_page_lists_the_services() -> None:
    """All of them, and no other."""
    page = Path(apprise.__file__).with_name("docs") / "apprise.md"
    _, _, services = page.read_text().partition("## The services")

    assert set(re.findall(r"`(.+?)`", services.partition("\n\n")[2])) - {"://"} == SCHEMAS


def test_the_engine_does_not_load_apprise() -> None:
    """Nor `requests`: checks of a connection and of a message need neither."""
    code = (
        "import sys; from engine.connectors import CONNECTORS as c;"
        "c['apprise'].check({'url': 'ntfy://h/t'}, {});"
        "c['apprise'].check_message('send', {'body': 'x'}, {});"
        "print({'apprise', 'requests', 'urllib3'} & set(sys.modules))"
    )
    root = Path(__file__).parents[2]

    told = subprocess.check_output([sys.executable, "-P", "-c", code], cwd=root, text=True)

    assert told.strip() == "set()"
