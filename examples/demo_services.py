"""The processes round the demo: the engine itself, and the outside services its functions reach.

Each is a context manager; leaving it ends what it started, also after a failure.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, urlsplit

from slack_stand_in import SlackStandIn

START_S = 60.0  # a first start also makes the database
STOP_S = 20.0
ENDING_S = 1.0
POLL_S = 0.02
STDERR_LINES = 60
LISTENING = "listening on "


class DemoFailed(Exception):
    """The demo cannot go on; the message says what was asked and what was found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slack:
    """Where the alarms go; `received` is None when only Slack knows what arrived."""

    webhook_url: str
    received: Callable[[], list[str]] | None = None


@contextmanager
def slack() -> Iterator[Slack]:
    """Give the real Slack if SLACK_WEBHOOK_URL is set; else run one that answers like it."""
    if real := os.environ.get("SLACK_WEBHOOK_URL"):
        yield Slack(webhook_url=real)
        return
    with SlackStandIn() as stand_in:
        yield Slack(
            webhook_url=stand_in.webhook_url,
            received=lambda: [message["text"] for message in stand_in.messages],
        )


@contextmanager
def degrees_service() -> Iterator[str]:
    """Run the outside service that forecast.js calls, in a thread; give its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Degrees)
    thread = Thread(target=server.serve_forever, name="degrees", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(STOP_S)


def celsius_of(fahrenheit: float) -> float:
    """Return degrees Celsius, to two decimals."""
    return round((fahrenheit - 32) / 1.8, 2)


class _Degrees(BaseHTTPRequestHandler):
    """`GET /celsius?fahrenheit=50` -> `{"celsius": 10.0}`."""

    protocol_version = "HTTP/1.1"
    timeout = STOP_S  # of one request, in seconds: the base class's own name

    def do_GET(self) -> None:
        asked = parse_qs(urlsplit(self.path).query).get("fahrenheit", [""])[0]
        try:
            status, body = 200, json.dumps({"celsius": celsius_of(float(asked))}).encode()
        except ValueError:
            status, body = 400, json.dumps({"error": f"{asked!r} is not a number"}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's
        pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """The engine's process: where it listens, and what it wrote to stderr."""

    url: str
    stderr: Path

    def last_words(self) -> str:
        """Return the end of what it wrote to stderr; empty when it wrote nothing."""
        lines = self.stderr.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(("--- stderr of the engine:", *lines[-STDERR_LINES:])) if lines else ""


@contextmanager
def engine(folder: Path, *, admin_key: str) -> Iterator[Engine]:
    """Start `python -P -m engine serve` on a free port.

    When anything fails while it runs, what it wrote to stderr is added to the failure.
    """
    stdout, stderr = folder / "engine.stdout", folder / "engine.stderr"
    command = [sys.executable, "-P", "-m", "engine", "serve", "--port", "0"]
    with stdout.open("wb") as out, stderr.open("wb") as err:
        process = subprocess.Popen(
            [*command, "--data-dir", str(folder / "data")],
            env=_environment(admin_key),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )
    try:
        yield Engine(url=_url_of(process, stdout), stderr=stderr)
    except Exception as error:
        state = _how_it_ended(process)
        words = Engine(url="", stderr=stderr).last_words()
        raise DemoFailed("\n".join(filter(None, (str(error), state, words)))) from error
    finally:
        _stop(process)


def _environment(admin_key: str) -> dict[str, str]:
    mine = {name: value for name, value in os.environ.items() if not name.startswith("CLOUDCODE_")}
    return mine | {
        "CLOUDCODE_ADMIN_KEY": admin_key,
        "CLOUDCODE_EGRESS_ALLOW": "127.0.0.0/8",  # guests may reach this machine: the stand-ins
        "PYTHONUNBUFFERED": "1",
    }


def _url_of(process: subprocess.Popen[bytes], stdout: Path) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        for line in stdout.read_text(encoding="utf-8").splitlines(keepends=True):
            if LISTENING in line and line.endswith("\n"):
                return line.partition(LISTENING)[2].split()[0].rstrip("/")
        if process.poll() is not None:
            raise DemoFailed("the engine ended at its start")
        time.sleep(POLL_S)
    raise DemoFailed(f"the engine did not say {LISTENING!r} within {START_S:g} s")


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    try:
        return f"the engine ended with exit code {process.wait(ENDING_S)}"
    except subprocess.TimeoutExpired:
        return ""  # it still runs, so that is not the reason


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(STOP_S)
