"""Every connector has a page, and what the page says is so: its example and every row of its table.

A table's row is one thing that a provider can do. The stand-in does it, and the delivery must
become what the row says.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from engine.connectors import CONNECTORS
from engine.connectors.contract import Answer, Outgoing, Refused, Retry, check_connection
from engine.deliveries import decide, sending_of
from engine.egress import Egress
from engine.errors import HostCallRefused
from tests.conftest import Engine
from tests.standins.all_providers import ALL
from tests.standins.provider import Case, Provider

PAGES = Path(__file__).parents[2] / "engine" / "connectors" / "docs"
TABLE = "## What the provider does, and what becomes of the delivery"
NOW = 1_700_000_000_500
TIMEOUT_MS = 700
ADDRESSES = [ip_network("127.0.0.0/8")]


@dataclass(frozen=True)
class Row:
    kind: str
    behaviour: str
    state: str
    why: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.behaviour}"


def page_of(kind: str) -> str:
    return (PAGES / f"{kind}.md").read_text()


def rows_of(kind: str) -> list[Row]:
    path = PAGES / f"{kind}.md"
    if not path.exists():
        return []
    _, _, text = path.read_text().partition(TABLE + "\n")
    lines = re.findall(
        r"^\| *(.+?) *\| *(\w+) *\| *(.*?) *\|$", text.split("\n## ")[0], re.MULTILINE
    )
    return [Row(kind, *line) for line in lines if line[1] in {*STATES, "refused"}]


def block(text: str, language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found is not None, f"there is no ```{language} block"
    return found[1]


STATES = {"delivered", "retrying", "failed", "held"}
ROWS = [row for kind in CONNECTORS for row in rows_of(kind)]


@pytest.fixture(params=sorted(CONNECTORS))
def provider(request: pytest.FixtureRequest) -> Iterator[Provider]:
    with ALL[request.param]() as stand_in:
        yield stand_in


@pytest.mark.parametrize("kind", CONNECTORS)
def test_each_connector_has_a_page_and_a_stand_in(kind: str) -> None:
    """Nobody has to read the code to know what happens to a message."""
    with ALL[kind]() as provider:
        behaviours: Mapping[str, Callable[[Case], None]] = provider.behaviours()

    told = [row.behaviour for row in rows_of(kind)]

    assert sorted(told) == sorted(behaviours)


@pytest.mark.parametrize("row", ROWS, ids=str)
async def test_what_the_page_says_becomes_of_a_delivery(row: Row) -> None:
    """The stand-in does what the row says, and the delivery becomes what the row says."""
    connector = CONNECTORS[row.kind]
    with ALL[row.kind]() as provider:
        case = provider.case()
        provider.behaviours()[row.behaviour](case)

        answer = await one_attempt(case, row.kind)

        if row.state == "refused":
            assert isinstance(answer, HostCallRefused), answer
            return
        assert not isinstance(answer, HostCallRefused), answer
        sending = sending_of(connector.habits, case.settings)
        verdict = decide(1, answer, NOW, Random(1), sending, created_ms=NOW)
        disables = isinstance(answer, Refused) and answer.disables  # the outbox holds it, then
        assert ("held" if disables else str(verdict.state)) == row.state, answer
        if row.state == "delivered":
            assert len(provider.accepted) == 1
        wait = re.match(r"in (\d+) s", row.why)
        if wait is not None:
            assert isinstance(answer, Retry)
            assert answer.after_ms == int(wait[1]) * 1000
        if isinstance(answer, Retry | Refused):
            assert answer.error
            for secret in texts_of(case.credentials):
                assert secret not in answer.error
            assert "disables" not in row.why or isinstance(answer, Refused)
            assert isinstance(answer, Retry) or answer.disables == ("disables" in row.why)


async def one_attempt(case: Case, kind: str) -> Answer | HostCallRefused:
    connector = CONNECTORS[kind]
    check_connection(connector, case.credentials, case.settings)
    try:
        message = connector.check_message(case.action, case.message, case.settings)
    except HostCallRefused as refused:
        return refused
    egress = Egress(ADDRESSES)
    try:
        return await connector.send(
            egress,
            Outgoing(
                action=case.action,
                message=msgspec.json.decode(msgspec.json.encode(message)),
                credentials=case.credentials,
                settings=case.settings,
                delivery_id="dlv_0194f0c2a1b07c3e8d2f6a5b4c3d2e1f",
                attempt=1,
                now_ms=NOW,
                timeout_ms=TIMEOUT_MS,
            ),
        )
    finally:
        await egress.close()


def texts_of(value: Any) -> list[str]:
    """Return all that is long enough to be a credential and to be recognised."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for one in value for text in texts_of(one)]
    return [value] if isinstance(value, str) and len(value) >= 12 and "://" not in value else []


def test_the_pages_example_sends(engine: Engine, provider: Provider) -> None:
    """The page's connection and function, as they stand there, make one delivery."""
    page = page_of(provider.kind)
    named = re.search(r"PUT /v1/connections/([A-Z_0-9]+)", page)
    assert named is not None
    shown = msgspec.json.decode(block(page, "json"))
    check_connection(CONNECTORS[shown["kind"]], shown["credentials"], shown.get("settings", {}))
    here = provider.connection()
    body = {
        "kind": shown["kind"],
        "credentials": shown["credentials"] | here["credentials"],
        "settings": shown.get("settings", {}) | here["settings"],
    }
    engine.ok("PUT", f"/v1/connections/{named[1]}", body)
    function = f"page-{provider.kind}"
    engine.deploy(function, block(page, "js"))

    answer = engine.invoke(function, {})

    assert answer.status_code == 200, answer.text
    found = engine.until(lambda: delivered(engine, answer.headers["Execution-Id"]))
    assert len(found) == 1
    assert len(provider.accepted) == 1


def delivered(engine: Engine, execution_id: str) -> list[dict[str, Any]]:
    items = engine.ok("GET", f"/v1/deliveries?execution={execution_id}")["items"]
    assert not [item for item in items if item["state"] in ("failed", "held")], items
    return [item for item in items if item["state"] == "delivered"]
