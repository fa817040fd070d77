"""A small HTTP load generator: keep-alive connections, one request in flight on each.

`python benchmarks/load.py` reads a JSON job on stdin and prints a JSON result; it is a process of
its own so that it does not share the engine's interpreter.
"""

import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from typing import Any, cast
from urllib.parse import urlsplit

import uvloop


@dataclass
class Result:
    """Latencies in nanoseconds of the answers in time, and how many were not 2xx."""

    latencies_ns: list[int] = field(default_factory=list)
    errors: int = 0
    first_error: str = ""


class Connection(asyncio.Protocol):
    """Sends the next request when the answer to the last one is whole."""

    def __init__(
        self,
        requests: "cycle[bytes]",
        result: Result,
        until_ns: int,
        done: "asyncio.Future[None]",
    ) -> None:
        self._requests = requests
        self._result = result
        self._until_ns = until_ns
        self._done = done
        self._buffer = b""
        self._sent_ns = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def _send(self) -> None:
        now = time.perf_counter_ns()
        if now >= self._until_ns:
            self._transport.close()
            return
        self._sent_ns = now
        self._transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        head = buffer.find(b"\r\n\r\n")
        if head < 0:
            self._buffer = buffer
            return
        at = buffer.find(b"content-length: ", 0, head)
        length = int(buffer[at + 16 : buffer.find(b"\r\n", at)])
        if len(buffer) < head + 4 + length:
            self._buffer = buffer
            return
        self._buffer = b""
        if buffer[9:10] == b"2":
            self._result.latencies_ns.append(time.perf_counter_ns() - self._sent_ns)
        else:
            self._result.errors += 1
            self._result.first_error = self._result.first_error or buffer.decode()[:500]
        self._send()

    def connection_lost(self, _error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_result(None)


async def drive(job: dict[str, Any]) -> dict[str, Any]:
    """Run one job: {url, requests: [[method, path, headers, body]], connections, seconds}."""
    parts = urlsplit(job["url"])
    requests = cycle([_bytes(parts.netloc, *request) for request in job["requests"]])
    result = Result()
    loop = asyncio.get_running_loop()
    began = time.perf_counter_ns()
    until_ns = began + int(job["seconds"] * 1e9)
    finished = []
    for _ in range(job["connections"]):
        done = loop.create_future()
        finished.append(done)
        connection = partial(Connection, requests, result, until_ns, done)
        await loop.create_connection(connection, parts.hostname, parts.port)
    await asyncio.gather(*finished)
    took_s = (time.perf_counter_ns() - began) / 1e9
    latencies = sorted(result.latencies_ns)
    count = len(latencies)
    return {
        "count": count,
        "per_second": count / took_s,
        "p50_ms": latencies[count // 2] / 1e6 if count else None,
        "p99_ms": latencies[int(count * 0.99)] / 1e6 if count else None,
        "errors": result.errors,
        "first_error": result.first_error,
        "seconds": took_s,
    }


def _bytes(host: str, method: str, path: str, headers: dict[str, str], body: str) -> bytes:
    data = body.encode()
    lines = [f"{method} {path} HTTP/1.1", f"host: {host}", f"content-length: {len(data)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


if __name__ == "__main__":
    print(json.dumps(uvloop.run(drive(json.load(sys.stdin)))))
