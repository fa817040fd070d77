"""An ntfy server, by its documentation and the errors of its source (server/errors.go).

Apprise publishes as JSON: `POST /` with `{topic, title?, message, priority?, ...}`; the answer is
the message with its id. Source: docs.ntfy.sh/publish ("Publish as JSON", "Limitations").
"""

import base64
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from tests.standins.provider import Asked, Case, HttpProvider, Reply

USER, PASSWORD = "alarm-user", "s3cret-of-ntfy"
TOPIC = "plant-alarms-7h2k"
MESSAGE_BYTES_MAX = 4_096


def error(status: int, code: int, text: str, **headers: str) -> Reply:
    body = {"code": code, "http": status, "error": text, "link": "https://ntfy.sh/docs/publish/"}
    return Reply(
        status=status,
        body=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"} | headers,
    )


class Broken(Exception):
    """A rule of the provider's, with its answer."""

    def __init__(self, status: int, code: int, text: str) -> None:
        self.reply = error(status, code, text)
        super().__init__(text)


class StandIn(HttpProvider):
    kind: ClassVar[str] = "apprise"
    message: ClassVar[dict[str, Any]] = {
        "title": "Door",
        "body": "The door of plant 7 is open",
        "type": "warning",
    }

    def connection(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "credentials": {"url": self.address()},
            "settings": {},
        }

    def address(self, topics: str = TOPIC, password: str = PASSWORD, query: str = "") -> str:
        host = self.url.removeprefix("http://")
        return f"ntfy://{USER}:{password}@{host}/{topics}{query}"

    def judge(self, asked: Asked) -> Reply:
        try:
            message = self._message(asked)
        except Broken as broken:
            with self.lock:
                self.refused.append(str(broken))
            return broken.reply
        with self.lock:
            self.accepted.append(message)
            number = len(self.accepted)
        body = {"id": f"id{number:010}", "time": 1_700_000_000, "event": "message", **message}
        return Reply(body=json.dumps(body).encode(), headers={"Content-Type": "application/json"})

    @staticmethod
    def _message(asked: Asked) -> dict[str, Any]:
        if (asked.method, asked.path) != ("POST", "/"):
            raise Broken(404, 40401, "page not found")
        expected = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if asked.headers.get("authorization") != f"Basic {expected}":
            raise Broken(401, 40101, "unauthorized")
        try:
            message = json.loads(asked.body)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise Broken(400, 40017, "invalid request: request body must be message JSON")
        if not re.fullmatch(r"[-_A-Za-z0-9]{1,64}", message.get("topic", "")):
            raise Broken(400, 40009, "invalid request: topic invalid")
        if message["topic"].startswith("reserved"):
            raise Broken(403, 40301, "forbidden")
        if not 1 <= message.get("priority", 3) <= 5:
            raise Broken(400, 40007, "invalid priority parameter")
        if len(message.get("message", "").encode()) > MESSAGE_BYTES_MAX:
            raise Broken(413, 41303, "JSON body too large")
        return message

    def own_behaviours(self) -> Mapping[str, Callable[[Case], None]]:
        def says(reply: Reply) -> Callable[[Case], None]:
            return lambda _case: self.then(reply)

        def url(**changes: str) -> Callable[[Case], None]:
            return lambda case: case.credentials.update(url=self.address(**changes))

        def told(**changes: Any) -> Callable[[Case], None]:
            return lambda case: case.message.update(changes)

        def nobody(case: Case) -> None:
            case.credentials["url"] = f"ntfy://127.0.0.1:1/{TOPIC}"

        def inside(case: Case) -> None:
            case.credentials["url"] = f"ntfy://10.0.0.5/{TOPIC}"

        return {
            "answers 429 `too many messages`": says(
                error(429, 42908, "limit reached: too many messages")
            ),
            "answers 507": says(error(507, 50701, "insufficient storage")),
            "answers 401 to a wrong password": url(password="wr0ng-password"),
            "answers 403, the topic is reserved": url(topics="reserved-topic"),
            "answers 413, the message is too long": told(body="x" * 5_000),
            "cannot be connected to": nobody,
            "is at an address inside that is not allowed": inside,
            "has two targets in its URL": url(topics=f"{TOPIC}/another-topic"),
            "a message without a body": told(body=""),
            "a message with an attachment": told(attach="/etc/passwd"),
            "a type that Apprise does not have": told(type="panic"),
        }
