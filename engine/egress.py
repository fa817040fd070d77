"""Sends every HTTP request that a guest or a connector asks for, and guards where it goes.

Path:   hostcalls.fetch, connectors.* -> here -> the network (SMTP: a socket from here)
Never:  connects to an address it has not checked; looks a name up twice; follows a redirect;
        keeps a cookie; reads a proxy from the environment (a proxy would resolve names itself).

The check stands in the network backend, so no request can go around it, whatever its URL says.
"""

import asyncio
import re
import select
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv6Network, ip_address
from typing import Any, Final, Protocol, TypeVar

import httpcore
import httpx

from engine.addresses import Network, Reach, refusal
from engine.allowed_hosts import PORTS_OF_OTHERS, host_allowed
from engine.errors import HostCallRefused

MIB: Final = 1024 * 1024
OF_OTHERS: Final = "belongs to another protocol than HTTP"
# As it goes to the resolver: a name or an address. No zone (`%eth0`), no sign that resolvers read
# differently, no empty label.
_HOST: Final = re.compile(
    rb"(?=.{1,254}$)[0-9A-Za-z_-]{1,63}(\.[0-9A-Za-z_-]{1,63})*\.?|(?=.*:.*:)[0-9A-Fa-f:.]{2,45}"
)

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Returns the addresses of a host, best first; raises OSError when there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressLimits:
    """Of one Egress, whoever asks."""

    connections: int = 256  # at once, idle ones included
    idle_ms: int = 4_000  # below the 5 s after which common servers close an idle connection
    connect_ms: int = 5_000  # per address
    addresses_tried: int = 3
    resolver_threads: int = 16  # a slow name server must not take the engine's other threads

    def __post_init__(self) -> None:
        assert self.addresses_tried > 0, self
        assert 0 < self.resolver_threads <= self.connections, self


class EgressRefused(HostCallRefused):
    """The caller's: the request may not be sent. Trying again does not help."""

    code = "egress_refused"

    def __init__(self, detail: str, reason: str) -> None:
        self.reason = reason  # scheme | host | port | address | redirect: a label of metrics
        super().__init__(detail)


class EgressFailed(HostCallRefused):
    """The network's or the other server's: there is no answer. Trying again may help."""

    code = "egress_failed"

    def __init__(self, detail: str, reason: str) -> None:
        self.reason = reason  # timeout | dns | connect | tls | disconnected | protocol
        super().__init__(detail)


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What the server answered. `truncated`: there was more body than asked for."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]  # names in lower case
    body: bytes
    truncated: bool = False

    def header(self, name: str) -> str | None:
        """Return the first header of this (lower case) name."""
        return next((value for known, value in self.headers if known == name), None)


class Companion(Protocol):
    """What reaches the network in a way of its own, by the rules of an Egress."""

    async def close(self) -> None: ...


CompanionT = TypeVar("CompanionT", bound=Companion)


class Egress:
    """One pool of connections to checked addresses."""

    def __init__(
        self,
        allow: Sequence[Network],
        *,
        deny: Sequence[Network] = (),
        deny_hosts: Sequence[str] = (),
        nat64: Sequence[IPv6Network] = (),
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
        limits: EgressLimits | None = None,
    ) -> None:
        """The first four are what the operator says: see `addresses.Reach`."""
        limits = limits or EgressLimits()
        self.blocked: Counter[str] = Counter()  # by reason
        self._reach = Reach(
            allow=tuple(allow),
            deny=tuple(deny),
            deny_hosts=tuple(deny_hosts),
            nat64=tuple(nat64),
        )
        self._companions: dict[Callable[..., Companion], Companion] = {}
        self._threads = ThreadPoolExecutor(limits.resolver_threads, thread_name_prefix="egress-dns")
        self._network = _CheckedNetwork(self._reach, resolve or self._look_up, limits)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls or _usual_tls(),
            max_connections=limits.connections,
            max_keepalive_connections=limits.connections,
            keepalive_expiry=limits.idle_ms / 1000,
            network_backend=self._network,
        )

    async def request(
        self,
        method: str,
        url: httpx.URL,
        *,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes | None = None,
        timeout_ms: int,
        response_bytes_max: int = MIB,
        any_port: bool = False,
    ) -> Response:
        """Send one request and read its answer.

        Args:
            method: as it goes on the wire.
            url: absolute; its fragment and user are not sent.
            headers: without Host and Content-Length, which are made here.
            body: None sends no body and no Content-Length.
            timeout_ms: for all of it: name, connection, request, answer.
            response_bytes_max: reading stops here; the answer says `truncated`.
            any_port: also one of those that belong to another protocol than HTTP.

        Raises:
            EgressRefused: the scheme, the host, the port or the address is not allowed.
            EgressFailed: no answer, or none in time.
        """
        try:
            _check_url(url, any_port=any_port)
            self._check_host(url.raw_host.decode("ascii"), _port(url))
            async with asyncio.timeout(timeout_ms / 1000):
                return await self._exchange(method, url, headers, body, response_bytes_max)
        except EgressRefused as error:
            self.blocked[error.reason] += 1
            raise
        except TimeoutError as error:
            raise EgressFailed(
                f"{url.host} did not answer within {timeout_ms} ms", "timeout"
            ) from error
        except (
            httpcore.NetworkError,
            httpcore.TimeoutException,
            httpcore.ProtocolError,
            OSError,
        ) as error:
            raise _failed(error, url.host) from error

    async def open_socket(self, host: str, port: int, *, timeout_ms: int) -> socket.socket:
        """Connect to a checked address of `host`, for what is not HTTP.

        Args:
            host: a name or an address.
            port: of TCP.
            timeout_ms: for the name and the connection.

        Returns:
            A connected socket that does not block; the caller closes it.

        Raises:
            EgressRefused: the address is not allowed.
            EgressFailed: no connection, or none in time.
        """
        try:
            if not _HOST.fullmatch(host.encode("ascii", "replace")):
                raise EgressRefused(f"{host!r} is not a host", "host")  # noqa: TRY301 - counted below, as all
            self._check_host(host, port)
            async with asyncio.timeout(timeout_ms / 1000):
                return await self._network.open_socket(host, port)
        except EgressRefused as error:
            self.blocked[error.reason] += 1
            raise
        except TimeoutError as error:
            raise EgressFailed(f"no connection to {host} in time", "timeout") from error
        except OSError as error:
            raise EgressFailed(f"no connection to {host}: {error}", "connect") from error

    def companion(self, make: Callable[[Reach], CompanionT]) -> CompanionT:
        """Return what `make` made of the operator's rules: once, and closed with this.

        For a provider's library that opens its connections itself: it has to check them alike.
        """
        known = self._companions.get(make)
        if known is None:
            known = self._companions[make] = make(self._reach)
        return known  # type: ignore[return-value]  # what `make` makes is what was kept under it

    async def close(self) -> None:
        for companion in self._companions.values():
            await companion.close()
        await self._pool.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _check_host(self, host: str, port: int) -> None:
        if host_allowed(host, port, self._reach.deny_hosts):
            detail = f"{host} is closed by the operator, with CLOUDCODE_EGRESS_DENY"
            raise EgressRefused(detail, "host")

    async def _exchange(
        self,
        method: str,
        url: httpx.URL,
        headers: Iterable[tuple[str, str]],
        body: bytes | None,
        response_bytes_max: int,
    ) -> Response:
        wire = [(b"Host", url.netloc)]
        wire += [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers]
        if body is not None:
            wire.append((b"Content-Length", b"%d" % len(body)))
        target = httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        )
        content = bytearray()
        async with self._pool.stream(method, target, headers=wire, content=body) as answer:
            async for chunk in answer.aiter_stream():
                content += chunk
                if len(content) > response_bytes_max:
                    break  # leaving the block closes the connection: the rest is not read
        return Response(
            status=answer.status,
            reason=answer.extensions.get("reason_phrase", b"").decode("latin-1"),
            headers=tuple(
                (name.decode("latin-1").lower(), value.decode("latin-1"))
                for name, value in answer.headers
            ),
            body=bytes(content[:response_bytes_max]),
            truncated=len(content) > response_bytes_max,
        )

    async def _look_up(self, host: str, port: int) -> Sequence[str]:
        # Not `loop.getaddrinfo`: it waits in threads that the rest of the engine needs.
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._threads, _getaddrinfo, host, port)
        return list(dict.fromkeys(found))


class _CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Turns a host into checked addresses and connects to one of those.

    The URL keeps its name, so Host, SNI and the certificate's check are those of the name.
    """

    def __init__(self, reach: Reach, resolve: Resolve, limits: EgressLimits) -> None:
        self._reach = reach
        self._resolve = resolve
        self._limits = limits
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the signature is httpcore's
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        failure: httpcore.ConnectError | httpcore.ConnectTimeout | None = None
        for address in await self._addresses(host, port):
            try:
                return _Stream(
                    await self._network.connect_tcp(
                        address, port, self._limits.connect_ms / 1000, local_address, socket_options
                    )
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore.ConnectError("no address")

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109 - the signature is httpcore's
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise EgressRefused("a request cannot go to a Unix socket", "address")

    async def open_socket(self, host: str, port: int) -> socket.socket:
        failure: OSError | None = None
        for address in await self._addresses(host, port):
            try:
                async with asyncio.timeout(self._limits.connect_ms / 1000):
                    return await _connected(address, port)
            except OSError as error:  # TimeoutError is one
                failure = error
        raise failure or OSError("no address")

    async def _addresses(self, host: str, port: int) -> list[str]:
        """Return the addresses to try, in order; the name is looked up once."""
        try:
            found = await self._resolve(host, port)
        except OSError as error:  # socket.gaierror is one
            raise EgressFailed(f"the name {host} cannot be resolved", "dns") from error
        return self._permitted(found)[: self._limits.addresses_tried]

    def _permitted(self, found: Sequence[str]) -> list[str]:
        """Return the addresses that a connection may go to.

        Raises:
            EgressRefused: there is none; names the first and the operator's remedy.
        """
        permitted = []
        refused = []
        for text in found:
            why = refusal(ip_address(text), self._reach)
            if why is None:
                permitted.append(text)
            else:
                refused.append(why)
        if refused and not permitted:
            raise EgressRefused(refused[0], "address")
        return permitted


class _Stream(httpcore.AsyncNetworkStream):
    """Answers httpcore's questions from what was known at the start.

    anyio asks the kernel for every attribute each time one is read: a dozen system calls a request.
    """

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._socket = stream.get_extra_info("socket")
        self._known = {"ssl_object": stream.get_extra_info("ssl_object"), "socket": self._socket}

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        return await self._stream.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the signature is httpcore's
    ) -> httpcore.AsyncNetworkStream:
        return _Stream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":  # an idle connection that is: the server closed it
            return _is_readable(self._socket)
        return self._known.get(info)


async def _connected(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with ExitStack() as unless_connected:
        opened = unless_connected.enter_context(socket.socket(family, socket.SOCK_STREAM))
        opened.setblocking(False)
        await asyncio.get_running_loop().sock_connect(opened, (address, port))
        unless_connected.pop_all()
    return opened


def _is_readable(connected: socket.socket) -> bool:
    descriptor = connected.fileno()
    if descriptor < 0:
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


@cache
def _usual_tls() -> ssl.SSLContext:
    """Return what trusts the usual authorities: reading them takes a tenth of what a start does."""
    return httpx.create_ssl_context(trust_env=False)


def _getaddrinfo(host: str, port: int) -> list[str]:
    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [str(answer[4][0]) for answer in answers]


def _check_url(url: httpx.URL, *, any_port: bool) -> None:
    if url.scheme not in ("http", "https"):
        raise EgressRefused(f"only http and https are possible, not {url.scheme!r}", "scheme")
    if not url.raw_host:
        raise EgressRefused("the URL names no host", "scheme")
    if not _HOST.fullmatch(url.raw_host):
        raise EgressRefused(f"{url.host!r} is not a host", "host")
    port = _port(url)
    if port in PORTS_OF_OTHERS and not any_port:
        raise EgressRefused(f"port {port} {OF_OTHERS}; use another port", "port")


def _port(url: httpx.URL) -> int:
    return url.port or (443 if url.scheme == "https" else 80)


def _failed(error: Exception, host: str) -> EgressFailed:
    if isinstance(error.__cause__ or error.__context__, ssl.SSLError):
        return EgressFailed(f"no TLS connection to {host}: {error}", "tls")
    if isinstance(error, httpcore.ConnectTimeout):
        return EgressFailed(f"no connection to {host} in time", "timeout")
    if isinstance(error, httpcore.ConnectError):
        return EgressFailed(f"no connection to {host}: {error}", "connect")
    if isinstance(error, httpcore.ProtocolError):
        return EgressFailed(f"{host} did not answer in HTTP: {error}", "protocol")
    return EgressFailed(f"{host} closed the connection without an answer", "disconnected")
