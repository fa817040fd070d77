"""The host call `fetch`: one HTTP request of a guest, at once: the one effect that is not buffered.

Path:   execute -> here -> egress -> the network
Never:  trusts an argument's type, size or name; follows a redirect without checking it again.
"""

import asyncio
import base64
import binascii
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Protocol

import httpx
import msgspec

from engine.allowed_hosts import PORTS_OF_OTHERS, host_allowed, port_named
from engine.causality import CDN_LOOP, HEADER
from engine.egress import MIB, OF_OTHERS, Egress, EgressRefused, Response
from engine.errors import HostCallRefused
from runtimes.contract import Limits

BODY_BYTES_MAX: Final = 1 * MIB  # of a request, and of a response after unpacking
URL_CHARS_MAX: Final = 8_192
HEADERS_MAX: Final = 100
HEADER_BYTES_MAX: Final = 32 * 1024  # all of them
REDIRECTS_MAX: Final = 5
TIME_MS_DEFAULT: Final = 30_000
AT_ONCE_PER_PROJECT: Final = 32  # an eighth of the pool: one project's slow server leaves the rest

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,256}")  # RFC 9110, 5.6.2
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_UPPER: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
_METHODS_REFUSED: Final = frozenset({"CONNECT", "TRACE", "TRACK"})  # Fetch standard, 2.2.1
_SAFE: Final = frozenset({"GET", "HEAD"})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_BODY_EXPECTED: Final = frozenset({"PATCH", "POST", "PUT"})

# The connection is ours, not the guest's: these are dropped without a word, as browsers do.
_HEADERS_DROPPED: Final = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-length",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        HEADER.lower(),
        CDN_LOOP[0].lower(),
    }
)
_HEADERS_OF_ORIGIN: Final = frozenset({"authorization", "cookie"})  # stay when the origin changes
_HEADERS_OF_BODY: Final = frozenset(
    {"content-encoding", "content-language", "content-location", "content-type", "idempotency-key"}
)
_HEADERS_HIDDEN: Final = frozenset(  # they describe the wire, not the body that the guest gets
    {"connection", "content-length", "keep-alive", "proxy-authenticate", "trailer"}
    | {"transfer-encoding", "upgrade"}
)


class FetchVersion(Protocol):
    """What a fetch must know of the function version."""

    @property
    def project_id(self) -> str: ...
    @property
    def allowed_hosts(self) -> tuple[str, ...]: ...


class FetchRun(Protocol):
    """What a fetch must know of the run that asks for it."""

    @property
    def execution_id(self) -> str: ...
    @property
    def version(self) -> FetchVersion: ...
    @property
    def limits(self) -> Limits: ...
    def via(self) -> str:
        """Return what the next request says of this run; each takes a share of its budget."""
        ...


class FetchArguments(msgspec.Struct, kw_only=True):
    """The guest's arguments, as they come: nothing in here is checked but the types."""

    url: str
    method: str = "GET"
    headers: list[tuple[str, str]] = msgspec.field(default_factory=list)
    body: str | None = None
    body_base64: bool = False
    redirect: Literal["follow", "manual", "error"] = "follow"
    timeout_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hop:
    method: str
    url: httpx.URL
    headers: tuple[tuple[str, str], ...]
    body: bytes | None = field(repr=False)


class Fetch:
    """The capability; one for the process, over one pool of connections."""

    def __init__(self, egress: Egress) -> None:
        self._egress = egress
        self._slots: dict[str, asyncio.Semaphore] = {}
        self._users: dict[str, int] = {}

    async def call(self, run: FetchRun, arguments: Any, call_no: int) -> dict[str, Any]:
        """Send the request and return its answer.

        Args:
            run: who asks; gives the allowed hosts and the time.
            arguments: the guest's, see FetchArguments: JSON as it came, or decoded.
            call_no: the number of this fetch in the run. With the execution's id it makes the
                Idempotency-Key, so a run that is repeated sends the same one.

        Raises:
            HostCallRefused: the arguments are wrong, or the answer is too large.
            EgressRefused: the host is not allowed, or its address is not.
            EgressFailed: no answer, or none in time.
        """
        asked = _read(arguments)
        hop = _first_hop(asked, f"{run.execution_id}-{call_no}")
        time_ms = min(asked.timeout_ms or TIME_MS_DEFAULT, run.limits.wall_ms)
        async with _Turn(self, run.version.project_id):
            ends_s = asyncio.get_running_loop().time() + time_ms / 1000
            for redirects in range(REDIRECTS_MAX + 1):
                self._check_host(hop.url, run.version.allowed_hosts)
                left_ms = max(1, int((ends_s - asyncio.get_running_loop().time()) * 1000))
                response = await self._egress.request(
                    hop.method,
                    hop.url,
                    headers=(*hop.headers, (HEADER, run.via()), CDN_LOOP),
                    body=hop.body,
                    timeout_ms=left_ms,
                    response_bytes_max=BODY_BYTES_MAX,
                    any_port=True,
                )
                location = response.header("location") if response.status in _REDIRECTS else None
                if location is None or asked.redirect == "manual":
                    return _answer(response, hop.url, redirected=redirects > 0)
                if asked.redirect == "error":
                    raise EgressRefused(
                        f"{hop.url.host} redirects to {location!r}, and the request says "
                        'redirect: "error"',
                        "redirect",
                    )
                hop = _next_hop(hop, response.status, location)
        raise EgressRefused(f"more than {REDIRECTS_MAX} redirects", "redirect")

    def _check_host(self, url: httpx.URL, allowed: Sequence[str]) -> None:
        host = url.raw_host.decode("ascii")
        port = url.port or (443 if url.scheme == "https" else 80)
        if not host_allowed(host, port, allowed):
            self._egress.blocked["host"] += 1
            why = "is not among its allowed_hosts" if allowed else "it has no network access"
            raise EgressRefused(
                f"this function may not reach {host!r}: {why}; "
                f"add {host!r} to allowed_hosts of this function",
                "host",
            )
        if port in PORTS_OF_OTHERS and not port_named(host, port, allowed):
            self._egress.blocked["port"] += 1
            raise EgressRefused(
                f"port {port} {OF_OTHERS}; if {host!r} speaks HTTP there, add "
                f"{f'{host}:{port}'!r} to allowed_hosts of this function",
                "port",
            )


class _Turn:
    """Waits until the project has fewer than AT_ONCE_PER_PROJECT requests on their way."""

    def __init__(self, fetch: Fetch, project_id: str) -> None:
        self._users = fetch._users  # noqa: SLF001 - one class in two parts
        self._slots = fetch._slots  # noqa: SLF001
        self._project_id = project_id

    async def __aenter__(self) -> None:
        self._users[self._project_id] = self._users.get(self._project_id, 0) + 1
        slots = self._slots.setdefault(self._project_id, asyncio.Semaphore(AT_ONCE_PER_PROJECT))
        try:
            await slots.acquire()  # the run's own wall time bounds this wait
        except asyncio.CancelledError:
            self._leave()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._slots[self._project_id].release()
        self._leave()

    def _leave(self) -> None:
        self._users[self._project_id] -= 1
        if self._users[self._project_id] == 0:
            del self._users[self._project_id], self._slots[self._project_id]


def _read(arguments: Any) -> FetchArguments:
    try:
        if isinstance(arguments, bytes):
            asked = msgspec.json.decode(arguments, type=FetchArguments)
        else:
            asked = msgspec.convert(arguments, FetchArguments)
    except msgspec.DecodeError as error:  # ValidationError is one
        raise HostCallRefused(f"fetch: {error}") from error
    if len(asked.url) > URL_CHARS_MAX:
        raise HostCallRefused(f"fetch: the URL has more than {URL_CHARS_MAX} characters")
    if len(asked.headers) > HEADERS_MAX:
        raise HostCallRefused(f"fetch: more than {HEADERS_MAX} headers")
    if sum(len(name) + len(value) for name, value in asked.headers) > HEADER_BYTES_MAX:
        raise HostCallRefused(f"fetch: the headers have more than {HEADER_BYTES_MAX} bytes")
    if asked.timeout_ms is not None and asked.timeout_ms <= 0:
        raise HostCallRefused("fetch: timeout_ms must be 1 or more")
    return asked


def _first_hop(asked: FetchArguments, idempotency_key: str) -> _Hop:
    method = asked.method.upper() if asked.method.upper() in _UPPER else asked.method
    if not _TOKEN.fullmatch(method) or method.upper() in _METHODS_REFUSED:
        raise HostCallRefused(f"fetch: the method {asked.method[:32]!r} is not possible")
    headers = []
    for name, value in asked.headers:
        trimmed = value.strip(" \t\r\n")
        if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(trimmed):
            raise HostCallRefused(f"fetch: the header {name[:64]!r} has a sign that is not allowed")
        if name.lower() not in _HEADERS_DROPPED:
            headers.append((name, trimmed))
    given = {name.lower() for name, _ in headers}
    defaults = [("Accept", "*/*"), ("User-Agent", "cloudcode-engine")]
    if method not in _SAFE:
        defaults.append(("Idempotency-Key", idempotency_key))
    headers += [(name, value) for name, value in defaults if name.lower() not in given]
    headers.append(("Accept-Encoding", "gzip, deflate"))
    return _Hop(
        method=method, url=_url(asked.url), headers=tuple(headers), body=_body(asked, method)
    )


def _url(text: str, base: httpx.URL | None = None) -> httpx.URL:
    try:
        url = base.join(text) if base is not None else httpx.URL(text)
    except (httpx.InvalidURL, ValueError) as error:
        raise HostCallRefused(f"fetch: {text[:200]!r} is not a URL: {error}") from error
    if url.userinfo:
        raise HostCallRefused(
            "fetch: the URL carries a user or a password; send an Authorization header instead"
        )
    return url.copy_with(fragment=None)


def _body(asked: FetchArguments, method: str) -> bytes | None:
    if asked.body is None:
        return b"" if method in _BODY_EXPECTED else None
    try:
        if asked.body_base64:
            body = base64.b64decode(asked.body, validate=True)
        else:
            body = asked.body.encode()
    except (binascii.Error, ValueError) as error:
        raise HostCallRefused(f"fetch: the body cannot be encoded: {error}") from error
    if len(body) > BODY_BYTES_MAX:
        raise HostCallRefused(
            f"fetch: the request body is {len(body)} bytes; the limit is {BODY_BYTES_MAX}"
        )
    return body


def _next_hop(hop: _Hop, status: int, location: str) -> _Hop:
    """Return the request that a redirect asks for (Fetch standard, "HTTP-redirect fetch")."""
    url = _url(location, hop.url)
    dropped: frozenset[str] = frozenset()
    if _origin(url) != _origin(hop.url):
        dropped |= _HEADERS_OF_ORIGIN
    becomes_get = (status in (301, 302) and hop.method == "POST") or (
        status == 303 and hop.method not in _SAFE  # noqa: PLR2004 - See Other
    )
    if becomes_get:
        hop = replace(hop, method="GET", body=None)
        dropped |= _HEADERS_OF_BODY
    kept = tuple((name, value) for name, value in hop.headers if name.lower() not in dropped)
    return replace(hop, url=url, headers=kept)


def _origin(url: httpx.URL) -> tuple[str, bytes, int]:
    return url.scheme, url.raw_host, url.port or (443 if url.scheme == "https" else 80)


def _answer(response: Response, url: httpx.URL, *, redirected: bool) -> dict[str, Any]:
    body, hidden = _unpacked(response)
    answer = {
        "status": response.status,
        "status_text": response.reason,
        "url": str(url),
        "redirected": redirected,
        "headers": [[name, value] for name, value in response.headers if name not in hidden],
    }
    try:
        return answer | {"body": body.decode("utf-8"), "body_base64": False}
    except UnicodeDecodeError:
        return answer | {"body": base64.b64encode(body).decode("ascii"), "body_base64": True}


def _unpacked(response: Response) -> tuple[bytes, frozenset[str]]:
    """Return the body without its content coding, and which headers no longer hold."""
    coding = (response.header("content-encoding") or "identity").strip().lower()
    body, rest = response.body, response.truncated
    if not rest and body and coding in ("gzip", "x-gzip", "deflate"):
        body, rest = _inflated(body)
    elif coding != "identity":
        coding = "identity"  # unknown to us: the guest gets the bytes, and the header that says so
    if rest:
        raise HostCallRefused(f"fetch: the response body is larger than {BODY_BYTES_MAX} bytes")
    return body, _HEADERS_HIDDEN if coding == "identity" else _HEADERS_HIDDEN | {"content-encoding"}


def _inflated(packed: bytes) -> tuple[bytes, bool]:
    """Return at most BODY_BYTES_MAX bytes and whether there are more: a bomb is not unpacked."""
    for window in (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS):  # gzip or zlib; then bare deflate
        inflate = zlib.decompressobj(window)
        try:
            body = inflate.decompress(packed, BODY_BYTES_MAX + 1)
        except zlib.error:
            continue
        return body[:BODY_BYTES_MAX], len(body) > BODY_BYTES_MAX
    raise HostCallRefused("fetch: the response body is not what its Content-Encoding says")
