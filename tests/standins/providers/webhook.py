"""A receiver that verifies as Standard Webhooks 1.0 says, with that project's own library."""

import base64
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar

from standardwebhooks import Webhook

from tests.standins.provider import Asked, Case, HttpProvider, Reply

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
OTHER_SECRET = "whsec_" + base64.b64encode(bytes(range(32, 64))).decode()


class StandIn(HttpProvider):
    kind: ClassVar[str] = "webhook"
    message: ClassVar[dict[str, Any]] = {"alarm": "door", "open": True}

    def __init__(self, port: int = 0) -> None:
        super().__init__(port)
        self.seen: set[str] = set()
        self.secrets = [SECRET]  # of the receiver: any of them will do

    def connection(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "credentials": {"url": f"{self.url}/hooks/one?tenant=7", "secret": SECRET},
            "settings": {},
        }

    def judge(self, asked: Asked) -> Reply:
        broken = self._broken(asked)
        with self.lock:
            if broken is not None:
                self.refused.append(broken.body.decode())
                return broken
            if asked.headers["webhook-id"] not in self.seen:
                self.seen.add(asked.headers["webhook-id"])
                self.accepted.append(json.loads(asked.body))
        return Reply(status=200, body=b"thanks")

    def _broken(self, asked: Asked) -> Reply | None:
        if asked.path != "/hooks/one?tenant=7":
            return Reply(status=404, body=b"no such hook")
        if asked.method not in ("POST", "PUT"):
            return Reply(status=405, body=b"POST it")
        if asked.headers.get("content-type") != "application/json":
            return Reply(status=415, body=b"JSON, please")
        if not any(self.verifies(asked, secret) for secret in self.secrets):
            return Reply(status=401, body=b"the signature does not fit")
        return None

    @staticmethod
    def verifies(asked: Asked, secret: str) -> bool:
        """Compare with what the independent library signs; its own clock is not the tests'."""
        identity, timestamp = asked.headers["webhook-id"], asked.headers["webhook-timestamp"]
        assert "." not in identity
        at = datetime.fromtimestamp(int(timestamp), UTC).replace(tzinfo=None)
        fitting = Webhook(secret).sign(identity, at, asked.body.decode())
        return fitting in asked.headers.get("webhook-signature", "").split()

    def own_behaviours(self) -> Mapping[str, Callable[[Case], None]]:
        def answers(status: int, body: bytes = b"") -> Callable[[Case], None]:
            return lambda _case: self.then(Reply(status=status, body=body, taken=status < 300))

        def wrong_secret(case: Case) -> None:
            case.credentials["secret"] = OTHER_SECRET

        def huge(case: Case) -> None:
            case.message["more"] = "x" * (256 * 1024)

        return {
            "answers 204 without a body": answers(204),
            "answers 409": answers(409, b"still at it"),
            "answers 425": answers(425),
            "answers 400": answers(400, b"what is a door?"),
            "answers 401 to a wrong signature": wrong_secret,
            "answers 404": answers(404, b"nothing here"),
            "answers 413": answers(413, b"too much"),
            "answers 422": answers(422, b"what is a door?"),
            "answers 508": answers(508, b"a loop"),
            "answers 410": answers(410, b"moved out"),
            "a message of more than 256 KiB": huge,
        }
