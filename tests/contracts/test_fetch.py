"""The host call `fetch`, against a real server."""

import base64
import gzip
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any

import msgspec
import pytest

from engine.causality import via
from engine.egress import Egress, EgressRefused
from engine.errors import HostCallRefused
from engine.hostcalls.fetch import Fetch
from engine.redaction import redaction_of
from runtimes.contract import Limits
from tests.standins.http_server import HttpServer, Received, answer, http_server

VALUE = "s3cr3t-value-of-some-length"


@dataclass
class AVersion:
    allowed_hosts: tuple[str, ...] = ("127.0.0.1", "localhost")
    project_id: str = "prj_1"


@dataclass
class ARun:
    execution_id: str = "exe_1"
    version: AVersion = field(default_factory=AVersion)
    limits: Limits = field(default_factory=lambda: Limits(cpu_ms=100, wall_ms=5_000, memory_mb=64))

    def via(self) -> str:
        return via("exe_1", 0, 5_000, "caller")


async def respond(received: Received) -> bytes:
    path = received.target
    if path.startswith("/to/"):
        _, _, status, target = path.split("/", 3)
        return answer(int(status), b"", Location=f"/{target}")
    if path.startswith("/away/"):
        return answer(302, b"", Location=f"http://localhost:{path[6:]}/end")
    if path == "/loop":
        return answer(307, b"", Location="/loop")
    if path == "/inside":
        return answer(302, b"", Location="http://169.254.169.254/latest")
    if path == "/bytes":
        return answer(200, b"\xff\x00")
    if path == "/gzip":
        return answer(200, gzip.compress("grüße".encode()), Content_Encoding="gzip")
    if path == "/bomb":
        return answer(200, gzip.compress(b"0" * 50_000_000, 9), Content_Encoding="gzip")
    if path == "/large":
        return answer(200, b"0" * (1024 * 1024 + 1))
    return answer(200, b"end", X_Kind="a", Connection="keep-alive")


@pytest.fixture
async def server() -> AsyncIterator[HttpServer]:
    async with http_server(respond) as found:
        yield found


@pytest.fixture
async def fetch() -> AsyncIterator[Fetch]:
    egress = Egress([ip_network("127.0.0.0/8"), ip_network("::1")])
    yield Fetch(egress)
    await egress.close()


async def test_a_request_goes_out_as_asked(server: HttpServer, fetch: Fetch) -> None:
    """Method, headers and body arrive; the answer comes back whole."""
    asked = {
        "url": f"{server.url}/a?b#c",
        "method": "post",
        "headers": [["X-A", " 1 "], ["Content-Type", "text/plain"], ["Host", "evil.com"]],
        "body": "grüße",
    }

    got = await fetch.call(ARun(), asked, 0)

    (received,) = server.received
    assert (received.method, received.target) == ("POST", "/a?b")
    assert received.body == "grüße".encode()
    assert received.headers["x-a"] == "1"
    assert received.headers["host"] == f"127.0.0.1:{server.port}"
    assert got == {
        "status": 200,
        "status_text": "OK",
        "url": f"{server.url}/a?b",
        "redirected": False,
        "headers": [["x-kind", "a"]],
        "body": "end",
        "body_base64": False,
    }


async def test_arguments_may_come_as_json_bytes(server: HttpServer, fetch: Fetch) -> None:
    """As the broker hands them over, undecoded."""
    got = await fetch.call(ARun(), msgspec.json.encode({"url": server.url}), 0)

    assert got["body"] == "end"


async def test_bytes_go_both_ways_as_base64(server: HttpServer, fetch: Fetch) -> None:
    """What is not UTF-8 is not spoiled."""
    asked = {
        "url": f"{server.url}/bytes",
        "method": "PUT",
        "body": base64.b64encode(b"\x00\xff").decode(),
        "body_base64": True,
    }

    got = await fetch.call(ARun(), asked, 0)

    assert server.received[0].body == b"\x00\xff"
    assert got["body_base64"] is True
    assert base64.b64decode(got["body"]) == b"\xff\x00"


async def test_a_packed_answer_is_unpacked(server: HttpServer, fetch: Fetch) -> None:
    """And the headers that described the packed form are gone."""
    got = await fetch.call(ARun(), {"url": f"{server.url}/gzip"}, 0)

    assert got["body"] == "grüße"
    assert got["headers"] == []


@pytest.mark.parametrize("path", ["/bomb", "/large"])
async def test_too_large_an_answer_is_refused(server: HttpServer, fetch: Fetch, path: str) -> None:
    """Before it is unpacked: a bomb of 50 MB costs 1 MB."""
    with pytest.raises(HostCallRefused, match="larger than 1048576 bytes"):
        await fetch.call(ARun(), {"url": f"{server.url}{path}"}, 0)


async def test_a_repeated_run_sends_the_same_idempotency_key(
    server: HttpServer, fetch: Fetch
) -> None:
    """Made of the run and the number of the call; not for GET, and not over the guest's own."""
    post = {"url": server.url, "method": "POST"}

    await fetch.call(ARun(), post, 3)
    await fetch.call(ARun(), post, 3)
    await fetch.call(ARun(), {"url": server.url}, 4)
    await fetch.call(ARun(), {**post, "headers": [["idempotency-key", "mine"]]}, 5)

    keys = [received.headers.get("idempotency-key") for received in server.received]
    assert keys == ["exe_1-3", "exe_1-3", None, "mine"]


@pytest.mark.parametrize(
    ("status", "method", "becomes"),
    [
        (301, "POST", "GET"),
        (302, "POST", "GET"),
        (303, "PUT", "GET"),
        (303, "HEAD", "HEAD"),
        (307, "POST", "POST"),
        (308, "PUT", "PUT"),
        (302, "PUT", "PUT"),
    ],
)
async def test_redirects_keep_or_change_the_method(
    server: HttpServer, fetch: Fetch, status: int, method: str, becomes: str
) -> None:
    """As the Fetch standard says; with the method the body stays or goes."""
    asked = {"url": f"{server.url}/to/{status}/end", "method": method}
    if method != "HEAD":
        asked |= {"body": "x", "headers": [["Content-Type", "text/plain"]]}

    got = await fetch.call(ARun(), asked, 0)

    last = server.received[-1]
    assert got["redirected"] is True
    assert got["url"] == f"{server.url}/end"
    assert last.method == becomes
    assert (last.body == b"x") == (becomes in ("POST", "PUT"))
    assert ("content-type" in last.headers) == (becomes in ("POST", "PUT"))


async def test_credentials_stay_with_their_origin(server: HttpServer, fetch: Fetch) -> None:
    """A redirect to another host gets no Authorization and no Cookie."""
    asked = {
        "url": f"{server.url}/away/{server.port}",
        "headers": [["Authorization", "Bearer x"], ["Cookie", "a=b"], ["X-Plain", "1"]],
    }

    await fetch.call(ARun(), asked, 0)

    first, second = server.received
    assert first.headers["authorization"] == "Bearer x"
    assert second.headers["host"] == f"localhost:{server.port}"
    assert "authorization" not in second.headers
    assert "cookie" not in second.headers
    assert second.headers["x-plain"] == "1"


async def test_every_hop_is_checked(server: HttpServer, fetch: Fetch) -> None:
    """A redirect leads neither to a host that is not allowed nor to an address inside."""
    narrow = ARun(version=AVersion(("127.0.0.1",)))
    wide = ARun(version=AVersion(("*",)))

    with pytest.raises(EgressRefused, match="add 'localhost' to allowed_hosts of this function"):
        await fetch.call(narrow, {"url": f"{server.url}/away/{server.port}"}, 0)
    with pytest.raises(EgressRefused, match="metadata service"):
        await fetch.call(wide, {"url": f"{server.url}/inside"}, 0)


async def test_redirects_can_be_left_or_forbidden(server: HttpServer, fetch: Fetch) -> None:
    """ "manual" gives the redirect itself, "error" an error, and an endless one ends."""
    url = f"{server.url}/to/302/end"

    manual = await fetch.call(ARun(), {"url": url, "redirect": "manual"}, 0)

    assert (manual["status"], manual["redirected"]) == (302, False)
    assert manual["headers"] == [["location", "/end"]]
    with pytest.raises(EgressRefused, match="redirects to '/end'"):
        await fetch.call(ARun(), {"url": url, "redirect": "error"}, 0)
    with pytest.raises(EgressRefused, match="more than 5 redirects"):
        await fetch.call(ARun(), {"url": f"{server.url}/loop"}, 0)


async def test_no_allowed_hosts_is_no_network(server: HttpServer, fetch: Fetch) -> None:
    """Checked before any lookup, and the error says what to add."""
    run = ARun(version=AVersion(()))

    with pytest.raises(EgressRefused, match=r"add 'api\.example\.com' to allowed_hosts") as refused:
        await fetch.call(run, {"url": "https://api.example.com/"}, 0)

    assert refused.value.reason == "host"
    assert server.received == []


@pytest.mark.parametrize(
    "asked",
    [
        None,
        [],
        {},
        {"url": 5},
        {"url": "http://h/", "headers": {"a": "b"}},
        {"url": "http://h/", "headers": [["a"]]},
        {"url": "http://h/", "headers": [["a b", "c"]]},
        {"url": "http://h/", "headers": [["a", "b\r\nX-Evil: 1"]]},
        {"url": "http://h/", "headers": [["a", "snow ☃"]]},
        {"url": "http://h/", "headers": [["a", "b"]] * 101},
        {"url": "http://h/", "method": "CONNECT"},
        {"url": "http://h/", "method": "GET / HTTP/1.1\r\nX: y"},
        {"url": "http://user:secret@h/"},
        {"url": "http://h/" + "a" * 9_000},
        {"url": "http://h:port/"},
        {"url": "ftp://127.0.0.1/"},
        {"url": "http://h/", "body": "x", "body_base64": True},
        {"url": "http://h/", "body": "x" * 1_048_577},
        {"url": "http://h/", "redirect": "perhaps"},
        {"url": "http://h/", "timeout_ms": 0},
        {"url": "http://h/", "timeout_ms": 1e99},
        {"url": "http://\ud800/"},
        {"url": "http://h/", "body": "\ud800"},
        b'{"url": "http://h/',
    ],
    ids=lambda asked: str(asked)[:60],
)
async def test_hostile_arguments_are_refused(fetch: Fetch, asked: Any) -> None:
    """Always with HostCallRefused, which the guest can catch; never with a crash of ours."""
    with pytest.raises(HostCallRefused):
        await fetch.call(ARun(version=AVersion(("h", "127.0.0.1"))), asked, 0)


@pytest.mark.parametrize("field", ["url", "method"])
async def test_a_refusal_can_be_told_without_the_secret_that_it_cuts(
    fetch: Fetch, field: str
) -> None:
    """It quotes the first characters of a URL or a method; the cut falls into the value."""
    redaction = redaction_of({"TOKEN": VALUE})
    asked = {"url": "http://h:x/" + "x" * 180 + VALUE}
    if field == "method":
        asked = {"url": "http://h/", "method": "(" * 20 + VALUE}

    with pytest.raises(HostCallRefused) as refused:
        await fetch.call(ARun(), asked, 0)

    assert redaction is not None
    told = redaction.refusal(str(refused.value), msgspec.json.encode(asked).decode())
    assert VALUE[:4] in str(refused.value)
    assert VALUE[:4] not in told
    assert "x[secret TOKEN]'" in told or "([secret TOKEN]'" in told
