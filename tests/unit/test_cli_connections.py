"""`cloudcode connections`: credentials go in by a file, stdin or unseen, and never by argument."""

# ruff: noqa: F811 - a test takes a fixture as a parameter of the name under which it imports it

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_cli import Api, api, cloudcode  # noqa: F401 - a fixture

PUT = "PUT /v1/connections/SMS"
CREDENTIALS = {"account_sid": "AC1", "auth_token": "s3cr3t-token"}
GATE = {"breaker": "closed", "until": None, "last_error": None, "disabled": None}
SHOWN: dict[str, Any] = {
    "name": "SMS", "kind": "twilio", "settings": {}, "functions": None, "gate": GATE,
    "updated_at": "2010-10-29T00:00:00.000Z",
}  # fmt: skip
CONNECTOR = {
    "kind": "twilio",
    "title": "SMS and calls",
    "actions": ["send", "call"],
    "credentials": {
        "$ref": "#/$defs/Credentials",
        "$defs": {
            "Credentials": {
                "type": "object",
                "required": ["account_sid"],
                "properties": {
                    "account_sid": {"type": "string"},
                    "auth_token": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                    "port": {"type": "integer"},
                    "key": {"type": "string"},
                },
            }
        },
    },
}


@pytest.mark.parametrize("option", ["--from-file", "--credentials"])
def test_credentials_come_from_a_file(api: Api, tmp_path: Path, option: str) -> None:
    """Under either name of the verb; the answer has none of them."""
    file = tmp_path / "twilio.json"
    file.write_text(json.dumps(CREDENTIALS))
    api.answer(PUT, 200, SHOWN)

    for group in ("connections", "connection"):
        words = (group, "put", "SMS", "--kind", "twilio", option, str(file))
        ran = cloudcode(*words, url=api.url)
        assert (ran.code, "s3cr3t" in ran.out + ran.err) == (0, False)

    assert api.bodies(PUT) == [{"kind": "twilio", "credentials": CREDENTIALS}] * 2


def test_credentials_come_from_stdin(api: Api) -> None:
    """With the settings and who may use it."""
    api.answer(PUT, 200, SHOWN)
    more = ["--settings", '{"guard": {"per_day": 5}}', "--function", "alarm", "--function", "x"]

    ran = cloudcode(
        "connections", "put", "SMS", "--kind", "twilio", *more, "--json",
        url=api.url, stdin=json.dumps(CREDENTIALS),
    )  # fmt: skip

    assert json.loads(ran.out) == SHOWN
    assert api.bodies(PUT) == [
        {
            "kind": "twilio",
            "credentials": CREDENTIALS,
            "settings": {"guard": {"per_day": 5}},
            "functions": ["alarm", "x"],
        }
    ]


def test_credentials_can_stay_as_they_are(api: Api) -> None:
    """Nobody types a secret again to change a setting."""
    api.answer(PUT, 200, SHOWN)
    words = ["connections", "put", "SMS", "--kind", "twilio", "--keep-credentials"]

    ran = cloudcode(*words, "--settings", "{}", "--all-functions", url=api.url)
    both = cloudcode(*words, "--from-file", "x.json", url=api.url)

    assert (ran.code, both.code) == (0, 1)
    assert api.bodies(PUT) == [{"kind": "twilio", "settings": {}, "functions": None}]


@pytest.mark.slow
def test_credentials_are_typed_in_unseen(api: Api) -> None:
    """At a terminal each field of the kind is asked for; what may be left out can be."""
    api.answer("GET /v1/connectors/twilio", 200, CONNECTOR)
    api.answer(PUT, 200, SHOWN)
    typed = {"account_sid": "AC1", "auth_token": "s3cr3t-token", "port": "587", "key": ""}
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "engine", "connections", "put", "SMS", "--kind", "twilio"]
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={"CLOUDCODE_URL": api.url, "CLOUDCODE_KEY": "cck_test", "PATH": os.environ["PATH"]},
        start_new_session=True,
    )
    os.close(theirs)

    seen = b""
    for name, text in typed.items():
        while not re.search(rb"%b( \(Enter: none\))?: $" % name.encode(), seen):
            seen += os.read(ours, 1_000)
        os.write(ours, text.encode() + b"\n")
    with contextlib.suppress(OSError):  # the end of a terminal
        while some := os.read(ours, 1_000):
            seen += some
    os.close(ours)

    assert process.wait(timeout=30) == 0, seen
    assert b"s3cr3t" not in seen
    assert api.bodies(PUT)[0]["credentials"] == {**CREDENTIALS, "port": 587}


@pytest.mark.parametrize("text", ["s3cr3t-token", '["s3cr3t-token"]', '{"a": "s3cr3t-token}'])
def test_a_file_that_is_no_credentials_is_not_quoted(api: Api, tmp_path: Path, text: str) -> None:
    """An error says where the JSON is wrong, and not what is there."""
    file = tmp_path / "twilio.json"
    file.write_text(text)
    words = ("connections", "put", "SMS", "--kind", "twilio", "--from-file", str(file))

    ran = cloudcode(*words, url=api.url)

    assert ran.code == 1
    assert "s3cr3t" not in ran.out + ran.err
    assert api.asked == []


def test_no_verb_takes_a_credential_as_an_argument() -> None:
    """Every user of the machine can read the command lines of all processes."""
    ran = cloudcode("connections", "put", "SMS", "--kind", "twilio", "--credential", "a=b")

    assert ran.code == 2


def test_connections_are_listed_with_how_they_do(api: Api) -> None:
    """One that is disabled says why; so does one that is open."""
    sick = SHOWN | {"name": "A", "gate": GATE | {"disabled": "HTTP 401: 20003"}}
    slow = SHOWN | {"name": "B", "gate": GATE | {"breaker": "open", "last_error": "HTTP 500"}}
    api.answer("GET /v1/connections", 200, {"items": [sick, slow, SHOWN], "next_cursor": None})
    api.answer("GET /v1/connections/SMS", 200, SHOWN)

    table = cloudcode("connections", "list", url=api.url)
    whole = cloudcode("connections", "list", "--json", url=api.url)
    shown = cloudcode("connections", "show", "SMS", "--json", url=api.url)

    assert "disabled: HTTP 401: 20003" in table.out
    assert "open: HTTP 500" in table.out
    assert json.loads(whole.out)["items"] == [sick, slow, SHOWN]
    assert json.loads(shown.out) == SHOWN


def test_a_test_that_fails_ends_with_a_failure(api: Api) -> None:
    """What the provider said is printed either way."""
    good = {"ok": True, "detail": "Boilers (active)", "status": 200, "took_ms": 8}
    bad = {"ok": False, "detail": "HTTP 401: 20003", "status": 401, "took_ms": 8}
    route = "POST /v1/connections/SMS/test"
    for answer in (good, bad, good):
        api.answer(route, 200, answer)

    fine = cloudcode("connections", "test", "SMS", url=api.url)
    wrong = cloudcode("connections", "test", "SMS", "--json", url=api.url)
    sent = cloudcode(
        "connections", "test", "SMS", "--message", '{"to": "+1"}', "--action", "call", url=api.url
    )
    misused = cloudcode("connections", "test", "SMS", "--action", "call", url=api.url)

    assert [fine.code, wrong.code, sent.code, misused.code] == [0, 1, 0, 1]
    assert "Boilers" in fine.out
    assert json.loads(wrong.out) == bad
    assert api.bodies(route) == [{}, {}, {"message": {"to": "+1"}, "action": "call"}]


def test_connections_are_enabled_and_deleted(api: Api) -> None:
    """By either name of the group."""
    api.answer("POST /v1/connections/SMS/enable", 200, {"name": "SMS", "released": 2})
    api.answer("DELETE /v1/connections/SMS", 204, None)

    enabled = cloudcode("connections", "enable", "SMS", "--json", url=api.url)
    gone = [
        cloudcode(group, "delete", "SMS", url=api.url) for group in ("connections", "connection")
    ]

    assert json.loads(enabled.out) == {"name": "SMS", "released": 2}
    assert [ran.code for ran in gone] == [0, 0]


def test_the_kinds_are_listed_with_what_they_take(api: Api) -> None:
    """The names of the credentials; all of the schema for one."""
    api.answer("GET /v1/connectors", 200, {"items": [CONNECTOR], "next_cursor": None})
    api.answer("GET /v1/connectors/twilio", 200, CONNECTOR)

    table = cloudcode("connections", "kinds", url=api.url)
    one = cloudcode("connections", "kinds", "twilio", "--json", url=api.url)

    assert "account_sid, auth_token, key, port" in table.out
    assert json.loads(one.out) == CONNECTOR


@pytest.mark.parametrize(
    ("words", "route", "what", "remedy"),
    [
        ("connections show X", "GET /v1/connections/X", "connection", "connections list"),
        ("deliveries show X", "GET /v1/deliveries/X", "delivery", "deliveries list"),
        ("secret delete X", "DELETE /v1/secrets/X", "secret", "secret list"),
        ("connections kinds X", "GET /v1/connectors/X", "connector", "connections kinds"),
        ("functions show X", "GET /v1/functions/X", "function", "functions list"),
    ],
)
def test_what_is_not_there_is_looked_for_among_its_kind(
    api: Api, words: str, route: str, what: str, remedy: str
) -> None:
    """The remedy lists such things, and no others."""
    detail = f"no {what} 'X' in this project"
    api.answer(route, 404, {"code": "not_found", "status": 404, "detail": detail})

    ran = cloudcode(*words.split(), url=api.url)

    assert ran.code == 1
    assert ran.err.splitlines()[-1] == f"remedy: see what there is: `cloudcode {remedy}`"


@pytest.mark.parametrize("given", ["{a", "@/nowhere"])
@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("connections", "put", "X", "--kind", "slack", "--settings"), "--settings"),
        (("connections", "test", "X", "--message"), "--message"),
        (("jobs", "create", "f"), "payload"),
        (("dlq", "edit", "dlq_1"), "payload"),
        (("invoke", "f"), "params"),
    ],
)
def test_json_that_is_none_is_told_by_the_name_of_what_has_it(
    api: Api, words: tuple[str, ...], name: str, given: str
) -> None:
    """As it was given on the command line."""
    ran = cloudcode(*words, given, url=api.url, stdin="{}")

    assert ran.code == 1
    assert ran.err.startswith(f"error: {name}: ")
    assert api.asked == []
