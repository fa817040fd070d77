"""Stored credentials and secrets are marked, and looked for wherever the engine shows anything.

Functions try to read them by every way that there is; the provider sends back all that it was sent.
"""

import base64
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.conftest import Engine
from tests.security.credential_thief import THIEF, THIEF_CLASSIC

SECRET = f"secret-{token_hex(16)}"
MARKS = {
    kind: token_hex(16)
    for kind in ("twilio", "slack", "sendgrid", "telegram", "mailchimp", "mail", "webhook",
                 "apprise")
}  # fmt: skip
TAIL = "/v1/functions/{name}/tail"  # never ends: read beside the others


class Provider(BaseHTTPRequestHandler):
    """Refuses everything, and says what it was sent: as bad as a provider can be."""

    def answer(self) -> None:
        sent = self.rfile.read(int(self.headers.get("content-length") or 0)).decode("latin-1")
        said = f"{self.path} {dict(self.headers)} {sent}"
        body = json.dumps({"message": said, "error": said, "description": said, "detail": said})
        self.send_response(400)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())
        self.server.asked.append(said)  # type: ignore[attr-defined] # our own list, see `provider`

    do_GET = do_POST = do_PUT = answer  # noqa: N815 - names of the standard library

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def provider() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    server.asked = []  # type: ignore[attr-defined] # see above
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def connections(port: int) -> dict[str, dict[str, Any]]:
    """Return a connection of each kind, with its mark, and a message that its check lets pass."""
    to = {"base_url": f"http://127.0.0.1:{port}"}
    mail = {"to": "a@example.com", "subject": "s", "text": "t"}
    return {
        "SMS": {
            "kind": "twilio",
            "credentials": {"account_sid": "AC" + "0" * 32, "auth_token": MARKS["twilio"]},
            "settings": {"from": "+15005550006", **to},
            "message": {"to": "+15005550001", "body": "b"},
        },
        "CHAT": {
            "kind": "slack",
            "credentials": {"token": f"xoxb-000000000000-{MARKS['slack']}"},
            "settings": {"channel": "C0ALARMS", **to},
            "message": {"text": "t"},
        },
        "GRID": {
            "kind": "sendgrid",
            "credentials": {"api_key": f"SG.0123456789abcdefghijkl.{MARKS['sendgrid']}ABCDEFGHIJK"},
            "settings": {"from": "alarm@example.com", **to},
            "message": mail,
        },
        "GRAM": {
            "kind": "telegram",
            "credentials": {"token": f"123456:{MARKS['telegram']}ABC"},
            "settings": {"chat_id": 42, **to},
            "message": {"text": "t"},
        },
        "CHIMP": {
            "kind": "mailchimp",
            "credentials": {
                "transactional_key": f"md-{MARKS['mailchimp']}",
                "api_key": f"{MARKS['mailchimp']}-us21",
            },
            "settings": {"from_email": "a@example.com", **to},
            "message": mail,
        },
        "POST": {
            "kind": "mail",
            "credentials": {"username": "u", "password": MARKS["mail"]},
            "settings": {"host": "127.0.0.1", "port": 9, "from": "a@example.com"},
            "message": mail,
        },
        "HOOK": {
            "kind": "webhook",
            "credentials": {
                "url": f"http://127.0.0.1:{port}/{MARKS['webhook']}",
                "secret": "whsec_" + base64.b64encode(MARKS["webhook"].encode()).decode(),
            },
            "settings": {},
            "message": {"type": "t", "data": {}},
        },
        "MANY": {
            "kind": "apprise",
            "credentials": {"url": f"ntfy://user:{MARKS['apprise']}@127.0.0.1:{port}/topic"},
            "settings": {},
            "message": {"body": "b"},
        },
    }


def shows(text: str | bytes) -> list[str]:
    """Return what of the secret and the credentials is in it: as it is, or in base64."""
    data = text.encode() if isinstance(text, str) else text
    found = []
    for name, mark in {**MARKS, "secret": SECRET}.items():
        forms = [mark.encode(), mark[::-1].encode(), mark[:20].encode()]
        for before in range(3):
            whole = base64.b64encode(b"x" * before + mark.encode())
            forms.append(whole[-(-before * 8 // 6) : -4])
        found += [name for form in forms if form in data]
    return found


class Tail:
    """Everything that the live log of a function says, as bytes."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.data = b""
        self._engine = engine
        self._stop = threading.Event()
        self._begun = threading.Event()
        path = f"{engine.url}{TAIL.format(name=name)}"
        self._thread = threading.Thread(target=self._read, args=(path, engine.headers))
        self._thread.start()
        self._begun.wait(10)

    def _read(self, url: str, headers: dict[str, str]) -> None:
        with httpx.Client(timeout=30) as http, http.stream("GET", url, headers=headers) as answer:
            self._begun.set()
            for chunk in answer.iter_bytes():
                self.data += chunk
                if self._stop.is_set():
                    break

    def close(self) -> None:
        self._stop.set()
        self._engine.invoke("thief", "wake")  # one more chunk ends it
        self._thread.join(30)


@pytest.mark.slow
def test_no_credential_and_no_secret_is_seen_anywhere(
    own_engine: Callable[..., Engine],
    provider: ThreadingHTTPServer,
    request: pytest.FixtureRequest,
) -> None:
    """Not by guests, in answers, records, live logs, metrics, stderr, nor in any file."""
    engine = own_engine(log_level="debug")
    port = provider.server_address[1]
    stored = connections(port)
    messages = {name: one.pop("message") for name, one in stored.items()}
    for name, body in stored.items():
        engine.ok("PUT", f"/v1/connections/{name}", body)
    engine.ok("PUT", "/v1/secrets/TOKEN", {"value": SECRET})
    fields = {"secrets": ["TOKEN"], "allowed_hosts": ["127.0.0.1"]}
    engine.deploy("thief", THIEF, **fields)
    engine.deploy("thief_classic", THIEF_CLASSIC, **fields)
    tail = Tail(engine, "thief")
    request.addfinalizer(tail.close)

    answers = [
        engine.invoke("thief", {"do": name, "messages": messages, "port": port})
        for name in ("look", "send", "throw", "reject", "log", "patch", "wake")
    ]
    answers += [engine.invoke("thief_classic", step) for step in ("look", "throw")]
    answers.append(engine.client.get("/f/default/thief/page"))
    job = {"function": "thief", "payload": {"do": "throw"}, "max_attempts": 1}
    engine.ok("POST", "/v1/jobs", job)
    for name, message in messages.items():
        for body in ({}, {"message": message}):
            answers.append(engine.client.post(f"/v1/connections/{name}/test", json=body))
    engine.until(lambda: len(engine.ok("GET", "/v1/dead-letters")["items"]) > 0)
    engine.until(lambda: _tried(engine) == len(messages), seconds=60)
    shown = dict(_everything(engine))
    tail.close()
    stderr = engine.stderr()
    engine.kill()
    files = {path.name: path.read_bytes() for path in _files(engine.data_dir)}
    engine.start()

    asked = "".join(provider.asked)  # type: ignore[attr-defined] # see above
    assert set(shows(asked)) == MARKS.keys() - {"mail"} | {"secret"}  # what is looked for is found
    assert answers[5].status_code == 200, answers[5].text
    assert {answer.status_code for answer in answers} <= {200, 502, 409, 422}
    assert answers[0].json()["length"] == len(SECRET)
    assert "[secret TOKEN]" in answers[0].text
    assert [(str(one.url), found) for one in answers if (found := shows(one.text))] == []
    assert [(path, found) for path, text in shown.items() if (found := shows(text))] == []
    assert b"log" in tail.data
    assert shows(tail.data) == []
    assert shows(stderr) == []
    assert [(name, found) for name, data in files.items() if (found := shows(data))] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", ["{account}, {token}", "JSON.parse(params).a, JSON.parse(params).t"]
)
def test_credentials_of_a_script_stay_in_the_script(
    own_engine: Callable[..., Engine], how: str
) -> None:
    """They are where its author or caller put them, and nowhere else."""
    engine, token = own_engine(), token_hex(16)
    account = "AC" + token_hex(16)
    given = how.format(account=json.dumps(account), token=json.dumps(token))
    source = f"""function main(params, callback) {{
        new Twilio({given}).sendSms({{ to: "+15005550001", from: "+15005550006", body: "b" }},
            callback); }}"""
    engine.deploy("texts", source)

    done = engine.invoke("texts", json.dumps({"a": account, "t": token}))
    execution = engine.ok("GET", f"/v1/executions/{done.headers['execution-id']}")
    (delivery,) = engine.ok("GET", "/v1/deliveries")["items"]
    engine.until(lambda: engine.ok("GET", f"/v1/deliveries/{delivery['id']}")["attempts"])
    shown = [text for _, text in _everything(engine)]
    del execution["input"]
    engine.kill()
    with closing(sqlite3.connect(engine.data_dir / "engine.db")) as database:
        tables = [row[0] for row in database.execute("SELECT name FROM sqlite_master")]
        rows = [
            (table, column, value)
            for table in tables
            if not table.startswith(("ix_", "sqlite_", "versions"))
            for row in database.execute(f'SELECT * FROM "{table}"').fetchall()
            for column, value in enumerate(row)
        ]
    engine.start()

    assert done.status_code == 200, done.text
    assert "[not shown]" in str(execution["transcript"])
    assert token not in str(execution)
    seen = [one for one in shown if token.encode() in one]
    assert [one for one in seen if b'"input"' not in one and b'"files"' not in one] == []
    assert token not in engine.stderr()
    places = {(table, column) for table, column, value in rows if token in str(value)}
    inputs = {("executions", 18)}  # what the caller sent
    assert places <= inputs


def _tried(engine: Engine) -> int:
    found = engine.ok("GET", "/v1/deliveries", params={"limit": 200})["items"]
    return len({one["connection"] for one in found if one["attempts"] > 0})


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "master.key"]


def _everything(engine: Engine) -> Iterator[tuple[str, bytes]]:
    """Yield what each GET of the API answers, for everything that there is."""
    document = engine.ok("GET", "/openapi.json")
    yield "/openapi.json", json.dumps(document).encode()
    known = _names(engine)
    left_out = []
    for path, methods in document["paths"].items():
        if "get" not in methods or path == TAIL or path.startswith("/f/"):
            continue
        wanted = [part[1:-1] for part in path.split("/") if part.startswith("{")]
        for names in known.get(path, known.get(wanted[0] if wanted else "", [{}])):
            if not set(wanted) <= names.keys():
                left_out.append(path)
                continue
            filled = path.format(**{name: quote(str(one), safe="") for name, one in names.items()})
            answer = engine.client.get(filled)
            assert answer.status_code in {200, 404}, (filled, answer.text)
            yield filled, answer.content
    assert left_out == []


def _names(engine: Engine) -> dict[str, list[dict[str, str]]]:
    """Return what to put into paths: by the first name in it, or by the path itself."""
    device = engine.device("thermometer")
    engine.ok("POST", f"/v1/devices/{device['id']}/values", {"values": [{"key": "a", "value": 1}]})
    body = {"function": "thief", "name": "nightly", "cron": "0 3 * * *"}
    engine.client.post("/v1/schedules", json=body)

    def items(path: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = engine.ok("GET", path, params={"limit": 200})["items"]
        return found

    functions = [{"name": one["name"], "version": "1"} for one in items("/v1/functions")]
    return {
        "breaker_id": [{"breaker_id": one["id"]} for one in items("/v1/breakers")],
        "name": functions,
        "/v1/connections/{name}": [{"name": one["name"]} for one in items("/v1/connections")],
        "kind": [{"kind": one["kind"]} for one in items("/v1/connectors")],
        "letter_id": [{"letter_id": one["id"]} for one in items("/v1/dead-letters")],
        "delivery_id": [{"delivery_id": one["id"]} for one in items("/v1/deliveries")],
        "device_id": [{"device_id": device["id"]}],
        "event_id": [{"event_id": one["id"]} for one in items("/v1/events")],
        "execution_id": [{"execution_id": one["id"]} for one in engine.executions()],
        "job_id": [{"job_id": one["id"]} for one in items("/v1/jobs")],
        "namespace": [{"namespace": "default", "key": "k"}],
        "product": [{"product": "thermometer"}],
        "project": [{"project": "default"}],
        "schedule": [{"schedule": one["id"]} for one in items("/v1/schedules")],
        "token": [{"token": device["token"], "key": "a"}],
    }
