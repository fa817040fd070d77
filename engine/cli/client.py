"""Speaks HTTP with the engine: one request in, JSON or a `Failure` out.

Path:   a verb -> session -> here -> the engine's API
Never:  retries a request that changes something; follows a redirect with the key in hand.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import quote

import httpx

from engine.cli.failures import Misused, NotAnEngine, NotText, Refused, Unreachable

CONNECT_S: Final = 5.0
ANSWER_S: Final = 60.0
PAGE_ITEMS: Final = 200  # the most that a list gives in one answer
TAIL_SILENCE_S: Final = 60.0  # no line for so long: assume that the connection is dead


def segment(name: str) -> str:
    """Return `name` fit to stand in a path as one segment, whatever is in it."""
    return quote(_utf8(name), safe="")


class Client:
    """One engine and one key; an admin key may name the project that it works in."""

    def __init__(self, url: str, key: str, project: str = "") -> None:
        if not url.startswith(("http://", "https://")):
            raise Misused(f"the URL {url!r} must begin with http:// or https://")
        if not key.isascii() or not key.isprintable():
            raise Misused("the API key has characters that no key has: was it copied whole?")
        self.url = url.rstrip("/")
        headers = {"Accept": "application/json", "User-Agent": "cloudcode-cli"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        if project:
            headers["X-Project"] = quote(_utf8(project), safe=" -_.")
        try:
            self._http = httpx.Client(
                base_url=self.url,
                headers=headers,
                timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
                trust_env=not _is_local(url),  # a proxy cannot reach this machine's loopback
            )
        except httpx.InvalidURL as error:
            raise Misused(f"the URL {url!r} cannot be used: {error}") from error

    def get(self, path: str, **query: Any) -> Any:
        return self.request("GET", path, query=query)

    def post(self, path: str, body: Any = None, *, answer_s: float = ANSWER_S, **query: Any) -> Any:
        return self.json_of(self.send("POST", path, body=body, query=query, answer_s=answer_s))

    def put(self, path: str, body: Any) -> Any:
        return self.request("PUT", path, body=body)

    def delete(self, path: str) -> None:
        self.request("DELETE", path)

    def request(
        self, method: str, path: str, *, body: Any = None, query: Mapping[str, Any] | None = None
    ) -> Any:
        """Return the JSON of the answer; None when it has no body."""
        return self.json_of(self.send(method, path, body=body, query=query))

    def json_of(self, response: httpx.Response) -> Any:
        """Return the JSON of an answer; None when it has no body."""
        try:
            return response.json() if response.content else None
        except ValueError:
            asked = f"{response.request.method} {response.request.url.path}"
            raise NotAnEngine(self.url, f"no JSON in the answer to {asked}") from None

    def send(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        body_json: str = "",
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        answer_s: float = ANSWER_S,
    ) -> httpx.Response:
        """Return the whole answer, for those who need its headers.

        Args:
            method: of HTTP.
            path: on the engine.
            body: sent as JSON; None: no body.
            body_json: instead of `body`, a text that is JSON already, which may be null.
            query: without what is None or empty.
            headers: besides those of every request.
            answer_s: how long to wait for the answer.

        Raises:
            Misused: there is a text that cannot be sent.
            Unreachable: no connection, or no answer within `answer_s`.
            Refused: the status is an error.
        """
        text = body_json if body is None else json.dumps(body, ensure_ascii=False)
        content = _utf8(text) or None
        try:
            response = self._http.request(
                method,
                path,
                content=content,
                params=_given(query),
                headers={
                    **(headers or {}),
                    **({"Content-Type": "application/json"} if content else {}),
                },
                timeout=httpx.Timeout(answer_s, connect=CONNECT_S),
            )
        except httpx.TransportError as error:
            raise Unreachable(self.url, _reason(error)) from error
        if not response.is_success:
            raise Refused(_problem_of(response))
        return response

    def items(self, path: str, *, count_max: int, **query: Any) -> list[Any]:
        """Return up to `count_max` items of a list, page after page, newest first."""
        items: list[Any] = []
        cursor: str | None = None
        while len(items) < count_max:
            limit = min(PAGE_ITEMS, count_max - len(items))
            page = self.get(path, **query, limit=limit, cursor=cursor)
            if not isinstance(page, dict) or "items" not in page:
                raise NotAnEngine(self.url, f"no list in the answer to GET {path}")
            items += page["items"]
            cursor = page.get("next_cursor")
            if cursor is None:
                break
        return items

    @contextmanager
    def events(self, path: str) -> Iterator[Iterator[tuple[str, Any]]]:
        """Open a stream of server-sent events: pairs of its name and its JSON.

        Raises:
            Unreachable: at the start, or out of the iterator when the stream breaks.
            Refused: the status is an error.
        """
        timeout = httpx.Timeout(TAIL_SILENCE_S, connect=CONNECT_S)
        headers = {"Accept": "text/event-stream"}
        try:
            with self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
                if not response.is_success:
                    response.read()
                    raise Refused(_problem_of(response))
                yield _events(response.iter_lines())
        except httpx.TransportError as error:
            raise Unreachable(self.url, _reason(error)) from error
        except json.JSONDecodeError as error:
            raise NotAnEngine(self.url, f"an event of {path} is not JSON") from error

    def close(self) -> None:
        self._http.close()


def _events(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    # The subset of the event stream format that matters here: comments, `event`, `data`.
    # Source: WHATWG HTML, section 9.2.6 "Interpreting an event stream".
    name, data = "message", list[str]()
    for line in lines:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)
        elif not line:
            if data:
                yield name, json.loads("\n".join(data))
            name, data = "message", []


def _given(query: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        name: _utf8(value).decode() if isinstance(value, str) else value
        for name, value in (query or {}).items()
        if value not in (None, "")
    }


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # `from None`: it holds the text, which may be a secret
        raise NotText("what is to be sent") from None


def _problem_of(response: httpx.Response) -> dict[str, Any]:
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if isinstance(problem, dict) and ("detail" in problem or "title" in problem):
        return {"status": response.status_code, **problem}
    body = response.text.strip()[:500]  # a proxy's page, say: enough to recognise it
    detail = f"{response.request.method} {response.request.url.path} was answered with"
    return {
        "status": response.status_code,
        "detail": f"{detail} {response.status_code} {response.reason_phrase}: {body}",
    }


def _reason(error: httpx.TransportError) -> str:
    if isinstance(error, httpx.ConnectError):
        return "no connection (" + (str(error) or "refused") + ")"
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    return str(error) or type(error).__name__


def _is_local(url: str) -> bool:
    host = httpx.URL(url).host
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
