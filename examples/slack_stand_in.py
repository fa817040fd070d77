"""Answers like Slack's incoming webhooks, keeps what it was sent and shows it.

    python examples/slack_stand_in.py --port 8900
    POST /services/T000/B000/XXXX   a message, by Slack's published rules: "ok", or its error
    GET  /received                  {"count": n, "messages": [...]}

Source of the rules: docs.slack.dev, "Sending messages using incoming webhooks".
"""

import argparse
import json
import signal
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Any, Self

BODY_BYTES_MAX = 1024 * 1024
TEXT_CHARS_MAX = 40_000
BLOCKS_MAX = 50
ATTACHMENTS_MAX = 100
IDLE_S = 60.0


@dataclass(frozen=True, slots=True)
class Trouble:
    """What the next message gets instead of "ok": `status` None drops the connection."""

    status: int | None
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0


class SlackStandIn:
    """The server in a thread: `with SlackStandIn() as slack: ... slack.messages`."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self._server = _Server((host, port), _Handler)
        self._server.stand_in = self
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._lock = Lock()
        self._messages: list[dict[str, Any]] = []
        self._troubles: deque[Trouble] = deque()
        self.stopping = Event()
        self.at_once_max = 0
        self._at_once = 0
        self.refusals: list[str] = []

    @property
    def url(self) -> str:
        return f"http://{self._server.server_address[0]}:{self._server.server_port}"

    @property
    def webhook_url(self) -> str:
        return f"{self.url}/services/T000/B000/XXXX"

    @property
    def messages(self) -> list[dict[str, Any]]:
        with self._lock:
            return list(self._messages)

    def then(self, *troubles: Trouble) -> None:
        """Answer the next messages with these, one each."""
        with self._lock:
            self._troubles.extend(troubles)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def serve(self) -> None:
        """Serve in this thread until interrupted."""
        try:
            self._server.serve_forever(0.2)
        except KeyboardInterrupt:
            pass
        finally:
            self._server.server_close()

    def post(self, path: str, content_type: str, body: bytes) -> Trouble:
        """Return what Slack would answer, and keep the message when that is "ok"."""
        with self._lock:
            trouble = self._troubles.popleft() if self._troubles else None
        if trouble is not None:
            self.stopping.wait(trouble.delay_s)
            if trouble.status != 200:
                return trouble
        answer = judge(path, content_type, body)
        with self._lock:
            if answer.status == 200:
                self._messages.append(json.loads(body))
            else:
                self.refusals.append(answer.body)
        return answer

    def enter(self) -> None:
        with self._lock:
            self._at_once += 1
            self.at_once_max = max(self.at_once_max, self._at_once)

    def leave(self) -> None:
        with self._lock:
            self._at_once -= 1


def judge(path: str, content_type: str, body: bytes) -> Trouble:
    """Return what an incoming webhook answers to this request."""
    parts = path.strip("/").split("/")
    if len(parts) != 4 or parts[0] != "services":
        return Trouble(404, "no_service")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        return Trouble(400, "invalid_payload")
    try:
        message = json.loads(body)
    except ValueError:
        return Trouble(400, "invalid_payload")
    if not isinstance(message, dict):
        return Trouble(400, "invalid_payload")
    text, blocks = message.get("text", ""), message.get("blocks", [])
    attachments = message.get("attachments", [])
    if not isinstance(text, str):
        return Trouble(400, "invalid_payload")
    if not text.strip() and not blocks and not attachments:
        return Trouble(400, "no_text")
    if len(text) > TEXT_CHARS_MAX:
        return Trouble(400, "msg_too_long")
    if not isinstance(blocks, list) or len(blocks) > BLOCKS_MAX:
        return Trouble(400, "invalid_blocks")
    if not isinstance(attachments, list) or len(attachments) > ATTACHMENTS_MAX:
        return Trouble(400, "too_many_attachments")
    return Trouble(200, "ok")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a client may keep its connection open longer than we live
    request_queue_size = 128
    stand_in: SlackStandIn


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S  # of a connection, in seconds: the base class's own name
    disable_nagle_algorithm = True  # status and body are two writes
    wbufsize = -1  # one segment instead of one per header

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > BODY_BYTES_MAX:
            self.close_connection = True
            self._answer(Trouble(400, "invalid_payload"), "text/html")
            return
        body = self.rfile.read(int(length))
        stand_in = self.server.stand_in
        stand_in.enter()
        try:
            answer = stand_in.post(self.path, self.headers.get("Content-Type", ""), body)
        finally:
            stand_in.leave()
        if answer.status is None:
            self.close_connection = True
        else:
            self._answer(answer, "text/html")

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != "/received":
            self._answer(Trouble(404, "not here; GET /received"), "text/plain")
            return
        messages = self.server.stand_in.messages
        shown = json.dumps({"count": len(messages), "messages": messages})
        self._answer(Trouble(200, shown), "application/json")

    def _answer(self, answer: Trouble, content_type: str) -> None:
        body = answer.body.encode()
        self.send_response(answer.status or 500)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's
        pass


def main() -> int:
    parser = argparse.ArgumentParser(description="Answers like Slack's incoming webhooks.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8900, help="0 takes a free one")
    parser.add_argument("--first-fail", type=int, default=0, help="answer 500 to the first N")
    asked = parser.parse_args()
    stand_in = SlackStandIn(asked.host, asked.port)
    stand_in.then(*[Trouble(500, "rollup_error")] * asked.first_fail)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    started = time.strftime("%H:%M:%S")
    print(f"listening on {stand_in.url} since {started}; webhook URL: {stand_in.webhook_url}")
    sys.stdout.flush()
    stand_in.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
